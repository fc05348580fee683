"""vit-pytorch's SimpleViT against ours with its weights."""

import pytest
import torch
from torch import nn
from vit_pytorch.simple_vit import SimpleViT, posemb_sincos_2d
from vit_pytorch.simple_vit_with_register_tokens import SimpleViT as RegisterSimpleViT

from backbones import ViT, build_encoder
from backbones.positions import resized_positions
from backbones.weights import WeightsError, encoder_words, load_encoder, read
from backbones.weights.formats.simple_vit import sincos_positions

from .test_transformers import assert_close, assert_whole, encoder_from, randomised, refusal

SMALL = dict(image_size=40, patch_size=8, num_classes=5, dim=128, depth=3, heads=2, mlp_dim=96)
DROPPED = {"norm behind the last block", "classifier's head"}


def write(path, **words) -> nn.Module:
    model = randomised(SimpleViT(**SMALL | words))
    torch.save(model.state_dict(), path)
    return model


@pytest.fixture
def path(tmp_path):
    return tmp_path / "simple_vit.pth"


def patch_features(model, image, positions_PC=None) -> torch.Tensor:
    """The patch tokens through the model's own blocks, (B, C, H, W)."""
    tokens = model.to_patch_embedding(image)
    tokens = tokens + (model.pos_embedding if positions_PC is None else positions_PC)
    for attention, mlp in model.transformer.layers:
        tokens = attention(tokens) + tokens
        tokens = mlp(tokens) + tokens
    return tokens.transpose(1, 2).unflatten(2, [side // 8 for side in image.shape[2:]])


@pytest.mark.parametrize(
    ("kind", "dropped"), [(SimpleViT, DROPPED), (RegisterSimpleViT, DROPPED | {"registers"})]
)
def test_simple_vit(kind, dropped, path):
    model = randomised(kind(**SMALL))
    torch.save(model.state_dict(), path)
    encoder, account = encoder_from(path, pretrain_img_size=40)
    assert read(path).format == "simple_vit"
    assert_whole(account, encoder, dropped)
    assert account.notes == [
        "absolute positions are computed, as this format does",
        "biases of attention are zeros: this format has none",
        "heads are taken to have 64 channels, vit-pytorch's default: a file does not show them",
    ]
    image = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        assert_close(encoder(image)["last_feat"], patch_features(model, image))


def test_another_size(path):
    """SimpleViT has positions of one size; theirs are resized as ours."""
    model = write(path)
    encoder, _ = encoder_from(path, pretrain_img_size=40)
    grid = model.pos_embedding.unflatten(0, (5, 5))[None]
    positions = resized_positions(grid, (3, 7)).flatten(0, 2)
    image = torch.randn(2, 3, 24, 56)
    with torch.no_grad():
        assert_close(encoder(image)["last_feat"], patch_features(model, image, positions))


@pytest.mark.parametrize("grid", [(5, 5), (3, 7), (14, 14), (64, 1)])
@pytest.mark.parametrize("channels", [8, 48, 192])
def test_positions_are_those_of_vit_pytorch(grid, channels):
    found = sincos_positions(grid, channels)
    assert found.shape == (1, *grid, channels)
    assert torch.equal(found[0].flatten(0, 1), posemb_sincos_2d(*grid, channels))


def test_default_words(path):
    """An encoder as `build_encoder` makes it, with a cls token's entry and biases of q, k and v."""
    model = write(path, image_size=224, patch_size=16, dim=192, heads=3, mlp_dim=768)
    encoder = build_encoder("vit-ti", depth=3, stem="patchify_norm", norm_layer=nn.LayerNorm).eval()
    account = load_encoder(encoder, path, show=str)
    assert not account.new
    assert account.resized["pos_embed"][0] == "cls token's entry, which detection does not read"
    assert not any("differs" in note for note in account.notes)
    image = torch.randn(1, 3, 224, 224)
    tokens = model.to_patch_embedding(image) + model.pos_embedding
    with torch.no_grad():
        for attention, mlp in model.transformer.layers:
            tokens = attention(tokens) + tokens
            tokens = mlp(tokens) + tokens
        expected = tokens.transpose(1, 2).unflatten(2, (14, 14))
        assert_close(encoder(image)["last_feat"], expected)


def test_heads_have_64_channels(path):
    """vit-pytorch's default, which the family's sizes do not have everywhere."""
    write(path, dim=1280, heads=20, depth=1)
    assert encoder_words(read(path))["num_heads"] == 20


def test_without_its_head(path):
    model = write(path)
    model.linear_head = nn.Identity()
    torch.save(model.state_dict(), path)
    encoder, account = encoder_from(path, pretrain_img_size=40)
    assert_whole(account, encoder, {"norm behind the last block"})


def test_into_another_stem_is_refused(path):
    write(path)
    words = encoder_words(read(path)) | dict(stem="patchify", pretrain_img_size=40)
    with pytest.raises(WeightsError) as caught:
        load_encoder(ViT(**words), path)
    told = str(caught.value)
    assert "unused patch embedding: patch_embed.norm_pixels.weight" in told
    assert "patch_embed.proj.weight 128x192 for 128x3x8x8" in told
    assert "stem=patchify_norm" in told


def test_heads_of_other_channels_are_refused(path):
    for words in (dict(heads=3), dict(dim_head=32)):
        write(path, **words)
        with pytest.raises(WeightsError, match=r"qkv.weight is .* heads \* dim_head = dim"):
            read(path)


@pytest.mark.parametrize("words", [dict(channels=1), dict(patch_size=(4, 8))])
def test_other_patches_are_refused(words, path):
    write(path, **words)
    with pytest.raises(WeightsError, match="no square patches of three channels"):
        read(path)


def test_a_tensor_less_is_refused(tmp_path):
    model = randomised(SimpleViT(**SMALL))
    for key, told in (
        ("to_patch_embedding.1.bias", "no patch embedding: patch_embed.norm_pixels.bias"),
        ("to_patch_embedding.3.weight", "no patch embedding: patch_embed.norm_token.weight"),
        ("transformer.layers.1.0.norm.bias", "no norms: blocks.1.norm1.bias"),
        ("transformer.layers.2.0.to_out.weight", "no attention: blocks.2.attn.proj"),
        ("transformer.layers.0.1.net.0.weight", "no norms: blocks.0.norm2.weight"),
        ("transformer.layers.0.1.net.3.bias", "no MLPs: blocks.0.mlp.fc2.bias"),
    ):
        assert told in refusal(model, lambda state, key=key: state.pop(key), tmp_path)
