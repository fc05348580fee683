"""torchvision's VisionTransformer against ours with its weights."""

import pytest
import torch
from torchvision.models import VisionTransformer, vit_b_16
from torchvision.models.vision_transformer import ConvStemConfig

from backbones import build_encoder
from backbones.weights import WeightsError, load_encoder, read

from .test_transformers import assert_close, assert_whole, encoder_from, randomised, refusal

SMALL = dict(
    image_size=40, patch_size=8, num_layers=3, num_heads=4, hidden_dim=48, mlp_dim=96, num_classes=5
)
DROPPED = {"cls token", "norm behind the last block", "classifier's head"}


def patch_features(model: VisionTransformer, image: torch.Tensor) -> torch.Tensor:
    """The patch tokens through the model's own blocks, without the cls token: (B, C, H, W)."""
    tokens = model._process_input(image) + model.encoder.pos_embedding[:, 1:]
    return model.encoder.layers(tokens).transpose(1, 2).unflatten(2, (5, 5))


@pytest.mark.parametrize("words", [dict(), dict(representation_size=16)])
@pytest.mark.parametrize("names", ["new", "old"])
def test_vit(names, words, tmp_path):
    model = randomised(VisionTransformer(**SMALL, **words))
    state = model.state_dict()
    if names == "old":  # before torchvision 0.13
        for i, old in ((0, "linear_1"), (3, "linear_2")):
            state = {k.replace(f".mlp.{i}.", f".mlp.{old}."): v for k, v in state.items()}
        model.load_state_dict(state)  # torchvision reads them too
    torch.save(state, tmp_path / "vit.pth")
    encoder, account = encoder_from(tmp_path / "vit.pth", num_heads=4)
    assert read(tmp_path / "vit.pth").format == "torchvision"
    assert_whole(account, encoder, DROPPED)
    assert not account.resized
    image = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        assert_close(encoder(image)["last_feat"], patch_features(model, image))


def test_another_size(tmp_path):
    """torchvision resizes no positions at run time: its model gets those of the map, by our
    rule."""
    model = randomised(VisionTransformer(**SMALL))
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    encoder, _ = encoder_from(tmp_path / "vit.pth", num_heads=4)
    image = torch.randn(2, 3, 56, 24)
    patches = model.encoder.pos_embedding[:, 1:].detach().transpose(1, 2).unflatten(2, (5, 5))
    positions = torch.nn.functional.interpolate(patches, (7, 3), mode="bicubic").flatten(2)
    with torch.no_grad():
        tokens = model.conv_proj(image).flatten(2) + positions
        expected = model.encoder.layers(tokens.transpose(1, 2)).transpose(1, 2)
        assert_close(encoder(image)["last_feat"], expected.unflatten(2, (7, 3)))


def test_vit_b_16_fits_vit_b(tmp_path):
    """The release's sizes: everything but the positions of detection's grid is loaded as it is."""
    torch.save(vit_b_16().state_dict(), tmp_path / "vit_b_16.pth")
    account = load_encoder(build_encoder("vit-b"), tmp_path / "vit_b_16.pth", show=str)
    assert not account.missing
    assert not account.new
    assert not account.resized
    assert not account.notes


def test_a_tensor_less_is_refused(tmp_path):
    model = randomised(VisionTransformer(**SMALL))
    layer = "encoder.layers.encoder_layer_1"
    for key, told in (
        (f"{layer}.ln_2.bias", "no norms: blocks.1.norm2.bias"),
        (f"{layer}.self_attention.out_proj.bias", "no attention: blocks.1.attn.proj.bias"),
        (f"{layer}.mlp.3.weight", "no MLPs: blocks.1.mlp.fc2.weight"),
        ("encoder.pos_embedding", "no absolute positions: pos_embed"),
        ("conv_proj.bias", "no patch embedding: patch_embed.proj.bias"),
    ):
        assert told in refusal(model, lambda state, key=key: state.pop(key), tmp_path)


def test_a_conv_stem_is_refused(tmp_path):
    stem = [ConvStemConfig(out_channels=c, kernel_size=3, stride=2) for c in (8, 16, 32)]
    model = VisionTransformer(**SMALL, conv_stem_configs=stem)
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    with pytest.raises(WeightsError, match=r"conv_bn_relu_0.* a conv stem .* is not read"):
        read(tmp_path / "vit.pth")
