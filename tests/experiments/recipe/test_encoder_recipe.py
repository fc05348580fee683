"""The study `encoder-recipe`: each row is one word away from the base, builds and is counted."""

import pytest
import torch
from detectron2.config import instantiate

from experiments import studies
from experiments.costs.detector_cost import detector_cost, textbook_attention
from experiments.costs.training_cost import count_step, training_macs, training_step
from experiments.jobs import runs
from experiments.recipe import config, identity
from tests.conftest import ROOT

STUDY = studies.find("encoder-recipe")
# Rows that change no product of matrices but those of a few channels or positions.
SAME_MACS = ["positions-sincos2d", "positions-none", "norm-batch", "activation-relu6", "mask-10"]


def rows(scale, size) -> dict:
    return {row.variant.name: row.cfg for row in runs.rows(STUDY, scale, size, {})}


def flat(node, prefix="") -> dict:
    if not isinstance(node, dict):
        return {prefix: node}
    return {k: v for key, child in node.items() for k, v in flat(child, f"{prefix}.{key}").items()}


@pytest.mark.parametrize(("scale", "size"), [("mini", "vit-mini"), ("coco", "vit-b")])
def test_rows_are_one_word_away_from_the_base(scale, size):
    found = {name: flat(identity.plain_config(cfg)) for name, cfg in rows(scale, size).items()}
    base = found.pop("base")
    assert len(found) == 10
    for name, row in found.items():
        changed = [key for key in row if row[key] != base[key]]
        assert len(changed) == 1, (name, changed)
        assert changed[0].startswith(".model.backbone.")


@pytest.mark.parametrize("size", ["vit-b", "vit-l"])
def test_the_recipe_is_that_of_random_weights_in_the_paper(size):
    (none,) = runs.rows(studies.find("pretraining"), "coco", size, {}, ["none"])
    base = rows("coco", size)["base"]
    assert identity.plain_config(base) == identity.plain_config(none.cfg)


@pytest.mark.parametrize("scale", ["mini", pytest.param("coco", marks=pytest.mark.slow)])
def test_costs_of_evaluation(scale):
    size = "vit-mini" if scale == "mini" else "vit-b"
    found = {name: detector_cost(cfg.model) for name, cfg in rows(scale, size).items()}
    base = found["base"].encoder
    for name in SAME_MACS:
        assert found[name].encoder.macs == base.macs, name
    width = 64 if scale == "mini" else 768
    assert found["mask-10"].encoder.params == base.params + width
    assert found["registers-4"].encoder.params == base.params + 4 * width
    assert base.macs < found["registers-4"].encoder.macs < 1.02 * base.macs
    assert base.macs < found["rel-pos"].encoder.macs
    if scale == "mini":  # where no window has padding
        assert found["window-2"].encoder.macs < base.macs < found["window-8"].encoder.macs


@pytest.mark.parametrize(("scale", "share"), [("mini", 2 / 16), ("coco", 20 / 196)])
def test_costs_of_training(scale, share):
    """Of all rows' a step is counted without memory; dropped tokens save their share of it."""
    size = "vit-mini" if scale == "mini" else "vit-b"
    found = rows(scale, size)
    names = found if scale == "mini" else ["base", "mask-10", "registers-4"]
    macs = {name: training_macs(found[name].model) for name in names}
    encoder = detector_cost(found["base"].model).encoder.macs
    # Linear layers fall by the share, attention's products by twice of it; the stem does not.
    saved = (macs["base"] - macs["mask-10"]) / (3 * encoder)
    assert 0.7 * share < saved < 2 * share
    assert macs["base"] < macs["registers-4"] < 1.02 * macs["base"]
    for name in set(SAME_MACS) & macs.keys() - {"mask-10"}:
        assert macs[name] == macs["base"], name


@pytest.mark.slow
@pytest.mark.parametrize("size", ["vit-b", "vit-l"])
def test_every_row_trains_at_full_scale(size):
    """A step on the meta device."""
    for name, cfg in rows("coco", size).items():
        assert training_step(cfg.model, 1, (1024, 1024), amp=True).macs > 0, name


def test_macs_of_training_are_those_of_autocast():
    (row,) = runs.rows(STUDY, "mini", "", {}, ["mask-10"])
    step = training_step(row.cfg.model, 1, (128, 128), amp=True, textbook=True)
    assert training_macs(row.cfg.model) == step.macs


@pytest.mark.parametrize("name", ["mask-10", "registers-4", "norm-batch"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_computed_step_has_the_same_macs_and_nearly_the_bytes(name, checkpointing):
    """The numbers of the tokens take some of both, on the CPU."""
    model = rows("mini", "vit-mini")[name].model
    detector = instantiate(model)
    detector.backbone.net.use_act_checkpoint = checkpointing
    with textbook_attention(detector):
        computed = count_step(detector, torch.rand(2, 3, 128, 128), amp=True)
    counted = training_step(model, 2, (128, 128), True, checkpointing, textbook=True)
    assert counted.macs == computed.macs
    assert counted.peak_bytes == pytest.approx(computed.peak_bytes, rel=0.01)


def test_dropped_tokens_keep_less_memory():
    model = config.load(ROOT / "configs" / "coco" / "mask_rcnn_vit_b.py").model
    model.backbone.update(depth=4, use_rel_pos=False)
    peaks = []
    for model.backbone.mask_ratio in (0.0, 0.5):
        peaks.append(training_step(model, 1, (1024, 1024), amp=True).peak_bytes)
    assert peaks[1] < 0.9 * peaks[0]
