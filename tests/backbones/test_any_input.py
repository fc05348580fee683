"""Any image: levels align with their strides, attention changes nothing that should not matter."""

import pytest
import torch
from detectron2.structures import ImageList

from backbones import SimpleFeaturePyramid, ViT, build_backbone, build_encoder

TINY = dict(embed_dim=32, depth=2, num_heads=2, window_size=5, img_size=256)


def tiny_neck(**words) -> SimpleFeaturePyramid:
    return SimpleFeaturePyramid(
        ViT(**TINY), "last_feat", 8, scale_factors=(4.0, 2.0, 1.0, 0.5), **words
    )


@pytest.mark.parametrize("size", [(250, 199), (33, 64), (256, 256)])
def test_levels_align_with_their_strides(size):
    neck = tiny_neck()
    H, W = (-(-s // 32) * 32 for s in size)
    for name, level in neck(torch.randn(1, 3, *size)).items():
        stride = neck.output_shape()[name].stride
        assert level.shape == (1, 8, H // stride, W // stride)


def test_detectron2_pads_a_batch_to_what_the_levels_need():
    """Its own neck reports 0 here and misspells the key, so that levels misalign (issue 4676)."""
    neck = tiny_neck(square_pad=0)
    images = [torch.randn(3, 250, 199), torch.randn(3, 190, 230)]
    batch = ImageList.from_tensors(
        images, neck.size_divisibility, padding_constraints=neck.padding_constraints
    )
    assert batch.tensor.shape[-2:] == (256, 256)
    square = ImageList.from_tensors(
        images, padding_constraints=tiny_neck(square_pad=320).padding_constraints
    )
    assert square.tensor.shape[-2:] == (320, 320)


def test_padding_in_the_neck_is_padding_the_image():
    neck = tiny_neck().eval()
    image = torch.randn(1, 3, 250, 199)
    padded = torch.nn.functional.pad(image, (0, 224 - 199, 0, 256 - 250))
    torch.testing.assert_close(neck(image), neck(padded), rtol=0, atol=0)


def test_no_pixel_is_dropped():
    """Sizes that are no multiple of the patch: the last pixels still count."""
    net = ViT(**TINY)
    image = torch.randn(1, 3, 50, 70, requires_grad=True)
    features = net(image)["last_feat"]
    assert features.shape == (1, 32, 4, 5)
    features.square().sum().backward()
    assert (image.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize("stem", ["patchify", "conv"])
def test_stems_give_one_token_per_patch(stem):
    net = ViT(**TINY, stem=stem)
    assert net(torch.randn(2, 3, 64, 96))["last_feat"].shape == (2, 32, 4, 6)


@pytest.mark.parametrize("propagation", ["none", "global", "conv", "shifted"])
def test_bfloat16_autocast_stays_near_float32(propagation):
    torch.manual_seed(0)
    net = ViT(**TINY, propagation=propagation, use_rel_pos=True).eval()
    image = torch.randn(1, 3, 176, 304)
    exact = net(image)["last_feat"]
    with torch.autocast("cpu", torch.bfloat16):
        rough = net(image)["last_feat"]
    assert (rough - exact).norm() <= 0.02 * exact.norm()


def test_builders():
    backbone = build_backbone(
        "vit-mini", scale_factors=(2.0, 1.0), top_block="none", out_channels=16
    )
    assert {k: v.stride for k, v in backbone.output_shape().items()} == {"p2": 4, "p3": 8}
    with torch.device("meta"):
        assert list(build_backbone("vit-b").output_shape()) == ["p2", "p3", "p4", "p5", "p6"]
        encoder = build_encoder(
            "vit-b",
            img_size=1024,
            propagation="global",
            count=4,
            placement="even",
            use_rel_pos=True,
        )
    assert encoder(torch.empty(1, 3, 64, 64, device="meta"))["last_feat"].shape == (1, 768, 4, 4)
