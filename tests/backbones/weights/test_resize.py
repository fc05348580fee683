"""What loading resizes: positions, tables of relative positions, patch embeddings."""

import math
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.models import vision_transformer_sam
from torch import nn

from backbones import ViT, build_encoder
from backbones.weights import encoder_words, load_encoder, read
from backbones.weights.resize import resized_patches

from .test_transformers import assert_close, randomised

VIT = dict(embed_dim=48, depth=2, num_heads=4, num_classes=0)
SAMVIT = dict(
    img_size=256, patch_size=16, embed_dim=48, depth=4, num_heads=4, window_size=7,
    global_attn_indexes=(1, 3), neck_chans=16, num_classes=0,
)  # fmt: skip


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


def write(path, name: str, **words) -> nn.Module:
    model = randomised(timm.create_model(name, **words))
    torch.save(model.state_dict(), path)
    return model


def loaded(path, **words):
    """An encoder as in the file but for `words`, and the account."""
    encoder = ViT(**encoder_words(read(path)) | words).eval()
    return encoder, load_encoder(encoder, path, show=str)


# ---- Absolute positions -------------------------------------------------------------------------


@pytest.mark.parametrize("side", [3, 5, 8, 13])
@pytest.mark.parametrize("here", [False, True])
@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("vit_base_patch16_siglip_gap_224", 0),
        ("vit_tiny_patch16_224", 1),
        ("deit_tiny_distilled_patch16_224", 2),
    ],
)
def test_positions(name, prefix, here, side, path):
    """5 x 5 and `prefix` tokens, into `side` x `side`, with a cls token `here` or not."""
    model = write(path, name, **VIT, img_size=80)
    words = dict(num_heads=4, pretrain_img_size=16 * side, pretrain_use_cls_token=here)
    encoder, account = loaded(path, **words)
    theirs = resample_abs_pos_embed(
        model.pos_embed, (side, side), num_prefix_tokens=prefix, antialias=False
    )
    torch.testing.assert_close(encoder.pos_embed[:, int(here) :], theirs[:, prefix:])
    if here and prefix:
        assert torch.equal(encoder.pos_embed[:, 0], model.pos_embed[:, 0])
    how = account.resized.get("pos_embed", ("as it is",))[0]
    if side != 5:
        assert how == f"5x5 -> {side}x{side}, bicubic"
    elif int(here) == prefix:
        assert how == "as it is"
    else:
        assert how == "cls token's entry, which detection does not read"
    if "pos_embed" in account.resized:
        row = next(line for line in str(account).splitlines() if "resized" in line)
        assert how in row
        assert "absolute positions" in row


def test_positions_are_where_the_patches_are(path):
    """What a foreign model of the other size computes with its own resized positions."""
    model = write(path, "vit_tiny_patch16_224", **VIT, img_size=80)
    encoder, _ = loaded(path, num_heads=4, pretrain_img_size=128)
    other = timm.create_model("vit_tiny_patch16_224", **VIT, img_size=128).eval()
    positions = resample_abs_pos_embed(model.pos_embed, (8, 8), antialias=False)
    other.load_state_dict(model.state_dict() | {"pos_embed": positions})
    image = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        tokens = other._pos_embed(other.patch_embed(image))[:, 1:]
        expected = other.blocks(tokens).transpose(1, 2).unflatten(2, (8, 8))
        assert_close(encoder(image)["last_feat"], expected)


@pytest.mark.parametrize(
    ("image", "side"),
    [((256, 128), 16), ((96, 160), 8), ((32, 128), 4)],  # the last: as many, at other places
)
def test_positions_of_no_square(image, side, path):
    model = write(path, "samvit_base_patch16", **SAMVIT | dict(img_size=image))
    encoder, account = loaded(path, img_size=256, pretrain_img_size=16 * side)
    grid = tuple(pixels // 16 for pixels in image)
    assert read(path).grid == grid
    positions = F.interpolate(model.pos_embed.permute(0, 3, 1, 2), (side, side), mode="bicubic")
    torch.testing.assert_close(encoder.pos_embed, positions.flatten(2).transpose(1, 2))
    how = f"{grid[0]}x{grid[1]} -> {side}x{side}, bicubic"
    assert account.resized["pos_embed"] == (how, math.prod(encoder.pos_embed.shape))


# ---- Relative positions -------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "window"), [(256, 7), (128, 7), (128, 5), (320, 10)])
def test_relative_positions(side, window, path, monkeypatch):
    """Of 16 x 16 tokens in windows of 7, into other maps and windows: what timm's model computes,
    which resizes its tables at run time."""
    model = write(path, "samvit_base_patch16", **SAMVIT)
    encoder, account = loaded(path, img_size=side, pretrain_img_size=256, window_size=window)
    tokens = side // 16
    resized = {}
    for i, length in enumerate((window, tokens, window, tokens)):
        old = (7, 16, 7, 16)[i]
        for axis in "hw":
            key = f"blocks.{i}.attn.rel_pos_{axis}"
            assert encoder.state_dict()[key].shape == (2 * length - 1, 12)
            if length != old:
                how = f"{2 * old - 1} -> {2 * length - 1} offsets, linear"
                resized[key] = (how, (2 * length - 1) * 12)
    assert account.resized == resized
    assert not account.new
    if resized:
        rows = [line for line in str(account).splitlines() if line.startswith("resized")]
        assert all("relative positions" in row for row in rows)
        assert len(rows) == len({how for how, _ in resized.values()})

    name = "resample_abs_pos_embed_nhwc"
    monkeypatch.setattr(
        vision_transformer_sam,
        name,
        partial(getattr(vision_transformer_sam, name), antialias=False),
    )
    for block in model.blocks:
        block.window_size = window if block.window_size else 0
    image = torch.randn(1, 3, side, side)
    with torch.no_grad():
        assert_close(encoder(image)["last_feat"], model.forward_features(image))


# ---- Patches ------------------------------------------------------------------------------------

SIZES = [(14, 16), (16, 8), (16, 14), (8, 16), (32, 16)]


@pytest.mark.parametrize(("old", "new"), [*(((a, a), (b, b)) for a, b in SIZES), ((8, 8), (8, 12))])
def test_patches_are_timms(old, new):
    torch.manual_seed(0)
    kernel = torch.randn(6, 3, *old)
    theirs = resample_patch_embed(kernel, new)
    found = resized_patches(kernel, new)
    assert found.shape == theirs.shape
    assert found.dtype == kernel.dtype
    assert (found - theirs).abs().max() <= 1e-4 * theirs.abs().max()


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_tokens_of_resized_patches(old, new):
    """FlexiViT's property: the resized patch has by the new kernel the token that the patch had by
    the old one. Of any patch when enlarging; when shrinking, of what shrinking keeps of it."""
    torch.manual_seed(0)
    kernel = torch.randn(6, 3, old, old, dtype=torch.float64)
    found = resized_patches(kernel, (new, new))
    resize = partial(F.interpolate, size=(new, new), mode="bicubic", antialias=True)
    patch = torch.randn(5, 3, old, old, dtype=torch.float64)
    if new < old:
        # In the span of the rows of shrinking's matrix: its transpose, times anything.
        patch.requires_grad_()
        small = resize(patch)
        (patch,) = torch.autograd.grad(small, patch, torch.randn_like(small))
    tokens = F.conv2d(patch, kernel)
    torch.testing.assert_close(F.conv2d(resize(patch), found), tokens)


@pytest.mark.parametrize(("old", "new"), [(14, 16), (16, 8)])
def test_patches_at_load(old, new, path):
    """The map of an image is that of the enlarged image in patches enlarged as much."""
    model = write(path, "vit_tiny_patch16_224", **VIT, patch_size=old, img_size=5 * old)
    encoder, account = loaded(
        path, num_heads=4, patch_size=new, pretrain_img_size=5 * new, img_size=5 * new
    )
    pixels = f"{old}x{old} -> {new}x{new} pixels, pseudo-inverse"
    assert account.resized == {"patch_embed.proj.weight": (pixels, 48 * 3 * new**2)}
    row = next(line for line in str(account).splitlines() if line.startswith("resized"))
    assert "patch embedding" in row
    assert pixels in row
    kernel = resample_patch_embed(model.patch_embed.proj.weight.detach(), (new, new))
    other = timm.create_model("vit_tiny_patch16_224", **VIT, patch_size=new, img_size=5 * new)
    other.load_state_dict(model.state_dict() | {"patch_embed.proj.weight": kernel})
    image = torch.randn(2, 3, 5 * new, 5 * new)
    with torch.no_grad():
        tokens = other.eval()._pos_embed(other.patch_embed(image))[:, 1:]
        expected = other.blocks(tokens).transpose(1, 2).unflatten(2, (5, 5))
        assert_close(encoder(image)["last_feat"], expected)


def test_patches_and_positions_together(path):
    """As MAE's ViT-H of 14 px patches into a detector of 16 px patches: 16 x 16 -> 14 x 14."""
    write(path, "vit_huge_patch14_224", **VIT, img_size=224)
    encoder = build_encoder("vit-h", embed_dim=48, depth=2, num_heads=4)
    account = load_encoder(encoder, path, show=str)
    assert {key: how for key, (how, _) in account.resized.items()} == {
        "pos_embed": "16x16 -> 14x14, bicubic",
        "patch_embed.proj.weight": "14x14 -> 16x16 pixels, pseudo-inverse",
    }
    assert not account.new
