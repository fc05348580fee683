"""From words to one config, and what is told of mistakes."""

import pytest

from experiments import studies
from experiments.errors import UserError
from experiments.recipe import config, identity, resolved
from experiments.recipe.words import parse_override

from .rows import STUDY, resolve


def test_rows_differ_by_their_words_only():
    base, row = (identity.plain_config(resolve(name)) for name in ("none", "global"))
    assert base["model"]["backbone"].pop("propagation") == "none"
    assert row["model"]["backbone"].pop("propagation") == "global"
    # The strategies' own numbers of blocks, written out.
    assert base["model"]["backbone"].pop("count") == 0
    assert row["model"]["backbone"].pop("count") == 3
    assert base == row


def test_the_papers_conv_block_of_each_size():
    assert resolve("conv", "coco", "vit-b").model.backbone.conv_block == "bottleneck"
    assert resolve("conv", "coco", "vit-l").model.backbone.conv_block == "basic"


def test_all_blocks_are_a_number_of_them():
    every = resolve("global", model__backbone__count="all")
    assert every.model.backbone.count == 6
    number = resolve("global", model__backbone__count=6)
    assert identity.fingerprint(every, "data") == identity.fingerprint(number, "data")
    study = studies.find("count")
    row = study.variant("all", "coco")
    words = {"model.backbone.count": 3}  # over a row's word
    assert resolved.resolve(study, row, "coco", "vit-ti", words).model.backbone.count == 3


def test_overrides_win():
    cfg = resolve("global", model__backbone__count=1, train__max_iter=7)
    assert (cfg.model.backbone.count, cfg.train.max_iter) == (1, 7)


MISTAKES = {
    "unknown study 'global-vs-cov': did you mean 'global-vs-conv'": lambda: studies.find(
        "global-vs-cov"
    ),
    "no study file at none/such.py": lambda: studies.find("none/such.py"),
    "unknown variant 'globl' of study 'global-vs-conv' at scale 'mini': did you mean 'global'": (
        lambda: STUDY.variant("globl", "mini")
    ),
    "unknown scale 'cocoo': did you mean 'coco'": lambda: resolve(scale="cocoo"),
    "unknown size 'vit-minni' of configs/mini/mask_rcnn_*: did you mean 'vit-mini'": lambda: (
        resolve(size="vit-minni")
    ),
    "unknown size 'vit-b' of configs/mini/mask_rcnn_*: ": lambda: resolve(size="vit-b"),
    "unknown config key 'train.max_itr' in OVERRIDES: did you mean 'train.max_iter'": lambda: (
        resolve(train__max_itr=4)
    ),
    "unknown config key 'model.backbone.propagation.x'": lambda: resolve(
        model__backbone__propagation__x=4
    ),
    "config key 'train.max_iter' in OVERRIDES is 'abc': it takes a whole number": lambda: resolve(
        train__max_iter="abc"
    ),
    "config key 'train.amp' in OVERRIDES is 1: it takes true or false": lambda: resolve(
        train__amp=1
    ),
    "variant 'none': train.max_iter=0 is too small: at least 1": lambda: resolve(train__max_iter=0),
    "variant 'global': count='al' does not fit: a whole number or 'all' does": lambda: resolve(
        "global", model__backbone__count="al"
    ),
    "config key 'model.backbone.qk_norm' in OVERRIDES is 1: it takes true or false": lambda: (
        resolve(model__backbone__qk_norm=1)
    ),
    "unknown config key 'model.backbone.layer_scal' in OVERRIDES: did you mean "
    "'model.backbone.layer_scale'": lambda: resolve(model__backbone__layer_scal=1),
    "positions='rope' does not fit use_rel_pos=True": lambda: resolve(
        model__backbone__positions="rope", model__backbone__use_rel_pos=True
    ),
    "config key 'train' in OVERRIDES is 5: it takes keys of its own": lambda: resolve(train=5),
    "micro_batch_size=3 does not divide total_batch_size=8": lambda: resolve(
        dataloader__train__micro_batch_size=3
    ),
    "variant 'none': 'BNN'": lambda: resolve(model__backbone__norm="BNN"),
    "train.seed in OVERRIDES has no effect: choose with SEEDS=": lambda: resolve(train__seed=3),
    "variant 'none': train.init_weights: '' names no weights: 'none' is the word for random": (
        lambda: resolve(train__init_weights="")
    ),
    "weights='mae-in1k' is unknown: did you mean 'mae_in1k'": lambda: resolve(
        train__init_weights="mae-in1k"
    ),
    "no weights 'mae_in1k' are known for vit-ti, only for vit-b, vit-l": lambda: resolve(
        scale="coco", size="vit-ti", train__init_weights="mae_in1k"
    ),
    "variant 'swin': layer_decay=0.7 has no effect": lambda: resolved.resolve(
        studies.find("plain-vs-hierarchical"),
        studies.find("plain-vs-hierarchical").variant("swin", "mini"),
        "mini",
        "",
        {"param_groups.layer_decay": 0.7},
    ),
    "variant 'none': count=9 does not fit": lambda: resolve(model__backbone__count=9),
    "conv_block='basik' is unknown: did you mean 'basic'": lambda: resolve(
        "conv", model__backbone__conv_block="basik"
    ),
    "is not of the form a.b=c": lambda: parse_override("train.max_iter"),
    "no config at nowhere.py": lambda: config.load("nowhere.py"),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_told_in_one_line(message):
    with pytest.raises(UserError) as caught:
        MISTAKES[message]()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_config_file(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("model = (")
    with pytest.raises(UserError, match="cannot read the config"):
        config.load(broken)
    broken.write_text("model = dict()")
    with pytest.raises(UserError, match="lacks dataloader, optimizer"):
        config.load(broken)
