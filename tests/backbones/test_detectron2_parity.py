"""Our encoder and neck against detectron2's, with its weights: outputs and gradients."""

import detectron2.modeling.backbone.vit as d2
import pytest
import torch
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from backbones import SimpleFeaturePyramid, ViT

SMALL = dict(img_size=256, embed_dim=48, depth=4, num_heads=4, window_size=5)
PLANS = {
    "all windows": dict(window_block_indexes=(0, 1, 2, 3)),
    "two global": dict(window_block_indexes=(0, 2)),
    "all global": dict(window_block_indexes=()),
    "conv": dict(window_block_indexes=(0, 1, 2, 3), residual_block_indexes=(1, 3)),
}
# Square; not square; a map of 11 x 19 tokens, no multiple of the window of 5.
IMAGES = [(256, 256), (160, 320), (176, 304)]


def pair(plan: dict, **words):
    """The same random weights in both."""
    torch.manual_seed(0)
    theirs = d2.ViT(**SMALL, **plan, **words)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ours = ViT(**SMALL, **plan, **words)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def assert_close(ours: torch.Tensor, theirs: torch.Tensor):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def assert_same_function(ours, theirs, image, output):
    """Outputs, and the gradient of every parameter and of the image."""
    images = [image.clone().requires_grad_() for _ in range(2)]
    results = [output(net(x)) for net, x in zip((ours, theirs), images, strict=True)]
    assert_close(*results)
    weights = torch.randn_like(results[0])
    for result in results:
        (result * weights).sum().backward()
    assert_close(images[0].grad, images[1].grad)
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, gradients[name].grad)


@pytest.mark.parametrize("size", IMAGES)
@pytest.mark.parametrize("rel_pos", [False, True])
@pytest.mark.parametrize("plan", PLANS)
def test_encoder(plan, rel_pos, size):
    ours, theirs = pair(PLANS[plan], use_rel_pos=rel_pos)
    image = torch.randn(2, 3, *size)
    assert_same_function(ours, theirs, image, lambda features: features["last_feat"])


@pytest.mark.parametrize(
    "words",
    [
        dict(use_abs_pos=False),
        dict(pretrain_use_cls_token=False),
        dict(qkv_bias=False),
        dict(mlp_ratio=2.0, patch_size=8),
    ],
)
def test_encoder_with_other_constructor_words(words):
    ours, theirs = pair(PLANS["two global"], **words)
    image = torch.randn(1, 3, 160, 192)
    assert_same_function(ours, theirs, image, lambda features: features["last_feat"])


def test_words_and_indexes_say_the_same():
    torch.manual_seed(0)
    by_words = ViT(**SMALL, propagation="global", count=2)
    by_indexes = ViT(**SMALL, window_block_indexes=(0, 2))
    by_indexes.load_state_dict(by_words.state_dict())
    image = torch.randn(1, 3, 160, 192)
    torch.testing.assert_close(by_words(image), by_indexes(image), rtol=0, atol=0)
    assert by_words.plan == by_indexes.plan


@pytest.mark.parametrize("size", [(256, 256), (160, 320), (192, 288)])
def test_neck(size):
    encoders = pair(PLANS["two global"])
    words = dict(
        in_feature="last_feat", out_channels=32, scale_factors=(4.0, 2.0, 1.0, 0.5), norm="LN"
    )
    ours = SimpleFeaturePyramid(encoders[0], top_block=LastLevelMaxPool(), **words)
    theirs = d2.SimpleFeaturePyramid(encoders[1], top_block=LastLevelMaxPool(), **words)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert ours.output_shape() == theirs.output_shape()
    assert_same_function(
        ours,
        theirs,
        torch.randn(1, 3, *size),
        lambda levels: torch.cat([level.flatten() for level in levels.values()]),
    )


def test_checkpointing_changes_no_gradient():
    torch.manual_seed(0)
    plain = ViT(**SMALL, use_rel_pos=True)
    saving = ViT(**SMALL, use_rel_pos=True, use_act_checkpoint=True)
    saving.load_state_dict(plain.state_dict())
    image = torch.randn(1, 3, 176, 304)
    assert_same_function(saving, plain, image, lambda features: features["last_feat"])


def test_drop_path_of_the_last_block_is_the_rate():
    rates = [block.drop_path.p for block in ViT(**SMALL, drop_path_rate=0.3).blocks]
    theirs = d2.ViT(**SMALL, drop_path_rate=0.3).blocks
    expected = [getattr(block.drop_path, "drop_prob", 0.0) for block in theirs]
    assert rates == pytest.approx(expected)
