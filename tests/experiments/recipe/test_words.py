"""Words of users: read, and put into a config, a size with all of its own."""

import pytest

from backbones import build_encoder
from backbones.meta import on_meta
from experiments.errors import UserError
from experiments.jobs import pretraining_runs
from experiments.recipe import config, resolved
from experiments.recipe.words import parse_override, set_words
from experiments.studies import Variant

from .rows import STUDY, resolve


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("train.max_iter=4", "train.max_iter", 4),
        ("optimizer.lr=1e-4", "optimizer.lr", 1e-4),
        ("train.amp=false", "train.amp", False),
        ("model.backbone.count=null", "model.backbone.count", None),
        ("model.backbone.conv_block=basic", "model.backbone.conv_block", "basic"),
        ("train.init_weights=none", "train.init_weights", "none"),
        ("train.init_weights=", "train.init_weights", ""),
        ("x=[1, 2]", "x", [1, 2]),
    ],
)
def test_parse_override(text, key, value):
    assert parse_override(text) == (key, value)


@pytest.mark.parametrize("size", ["dinov3-b", "eva02-b", "pe-core-b", "dinov2-b", "vit-l"])
def test_another_size_has_all_its_words(size):
    """None is left of the size that the config is of."""
    words = dict(model__backbone__size=size, train__init_weights="none")
    cfg = resolve("global", scale="coco", size="vit-b", **words)
    made = config.build_on_meta(cfg.model).backbone.net
    with on_meta():
        own = build_encoder(size, img_size=1024)
    assert {k: v.shape for k, v in made.state_dict().items()} == {
        k: v.shape for k, v in own.state_dict().items()
    }
    assert made.plan == own.plan
    assert getattr(made, "unseen", None) is None or made.unseen.words == own.unseen.words
    assert made.blocks[0].norm1.eps == own.blocks[0].norm1.eps


def test_what_a_row_or_the_user_says_is_over_the_size():
    row = Variant("row", {"model.backbone.positions": "rope(base=50)"})
    words = {"model.backbone.registers": 2, "model.backbone.size": "dinov3-s"}
    words |= {"train.init_weights": "none"}
    backbone = resolved.resolve(STUDY, row, "coco", "vit-b", words).model.backbone
    assert backbone.positions == "rope(base=50)"
    assert backbone.registers == 2
    assert backbone.block_norm == "layer(eps=1e-5)"


def test_a_size_for_another_one_of_its_own():
    """The mini config has the words of vit-mini, which vit-ti has not."""
    cfg = resolve("none", model__backbone__size="vit-ti", train__init_weights="none")
    backbone = cfg.model.backbone
    assert (backbone.stem, backbone.window_size, backbone.img_size) == ("patchify", 14, 128)
    assert config.build_on_meta(cfg.model).backbone.net.patch_embed.patch_size == 16


@pytest.mark.parametrize(
    ("size", "of", "told"),
    [
        (
            "dinov3-x",
            "vit-b",
            "unknown size 'dinov3-x' in variant 'none': did you mean 'dinov3-",
        ),
        ("dinov3-b", "swin-b", "unknown config key 'model.backbone.size'"),
    ],
)
def test_a_size_that_does_not_fit(size, of, told):
    with pytest.raises(UserError, match=told):
        resolve(scale="coco", size=of, model__backbone__size=size)


def test_of_an_evaluation_and_a_pre_training_too():
    """Words that are set in a config by themselves."""
    cfg = config.load(config.base_path("coco", "vit-b"))
    words = {"model.backbone.registers": 1, "model.backbone.size": "dinov3-b"}
    set_words(cfg, words, "OVERRIDES")
    backbone = cfg.model.backbone
    assert (backbone.positions, backbone.registers, backbone.use_rel_pos) == ("rope", 1, False)
    with pytest.raises(UserError, match="positions without rope"):
        pretraining_runs.resolve("mae", "vit-b", {"model.encoder.size": "dinov3-b"})
