"""What `train.tuning` freezes: by modules, for good, and outside of the optimizer."""

import io

import pytest
import torch
from rich.console import Console

from experiments import studies
from experiments.costs.detector_cost import detector_cost, textbook_attention
from experiments.costs.training_cost import count_step, training_macs, training_step
from experiments.errors import UserError
from experiments.jobs import pretraining_runs, runs
from experiments.recipe import checks, config, identity, show_optim
from experiments.recipe.optim import param_groups
from experiments.recipe.resolved import resolve

STUDY = studies.find("global-vs-conv")


def resolved(tuning: str, variant="global", scale="mini", size="vit-mini", **words):
    words = {f"model.backbone.{word}": value for word, value in words.items()}
    row = STUDY.variant(variant, scale)
    return resolve(STUDY, row, scale, size, words | {"train.tuning": tuning})


def trains(cfg) -> tuple[torch.nn.Module, set[str]]:
    """The model on the meta device, and the encoder's parameters that its optimizer gets."""
    model = checks.check(cfg, "here")
    groups = param_groups(model, 1.0, 0.1, layer_decay=0.7)
    given = {p for group in groups for p in group["params"]}
    named = model.backbone.net.named_parameters()
    assert given == {p for p in model.parameters() if p.requires_grad}
    assert {p for p in model.parameters() if p not in given} <= set(model.backbone.net.parameters())
    return model, {name for name, p in named if p in given}


def test_full_is_all_and_frozen_is_nothing_of_the_encoder():
    model, names = trains(resolved("full"))
    assert names == {name for name, _ in model.backbone.net.named_parameters()}
    assert trains(resolved("frozen"))[1] == set()


@pytest.mark.parametrize("last", [1, 2, 6])
def test_the_last_blocks_and_what_comes_behind_them(last):
    words = dict(pre_norm=True, registers=2, out_chans=32)
    model, names = trains(resolved(f"last:{last}", **words))
    blocks = {int(n.split(".")[1]) for n in names if n.startswith("blocks.")}
    assert blocks == set(range(6 - last, 6))
    rest = {name for name in names if not name.startswith("blocks.")}
    assert rest == {f"neck.{name}" for name, _ in model.backbone.net.neck.named_parameters()}


def test_residual_modules_are_their_blocks():
    _, names = trains(resolved("last:2", "conv"))
    assert {n.split(".")[1] for n in names if ".residual." in n} == {"5"}


@pytest.mark.parametrize(("tuning", "still"), [("frozen", 6), ("last:2", 4)])
def test_what_is_frozen_stays_in_evaluation_mode(tuning, still):
    net = checks.check(resolved(tuning), "here").train().eval().train().backbone.net
    assert net.training is (tuning != "frozen")
    assert [block.training for block in net.blocks] == [False] * still + [True] * (6 - still)
    assert not any(m.training for m in net.patch_embed.modules())
    for block in list(net.blocks)[:still]:
        assert not any(m.training for m in block.modules())


@pytest.mark.parametrize("kind", ["swin-mini", "mvitv2-mini"])
def test_any_encoder_can_be_frozen(kind):
    cfg = config.load(config.base_path("mini", kind))
    cfg.train.tuning = "frozen"
    backbone = checks.check(cfg, "here").backbone
    assert not any(p.requires_grad for p in backbone.bottom_up.parameters())
    assert any(p.requires_grad for p in backbone.parameters())
    cfg.train.tuning = "last:2"
    with pytest.raises(UserError, match=r"train\.tuning=last:2 is for a plain ViT, not for"):
        checks.check(cfg, "here")


MISTAKES = {
    "last:0": "train.tuning=last:0 does not fit an encoder of 6 blocks: last:1 to last:6 do",
    "last:7": "train.tuning=last:7 does not fit an encoder of 6 blocks",
    "last:": "train.tuning=last: does not fit an encoder of 6 blocks",
    "last:-1": "train.tuning=last:-1 does not fit an encoder of 6 blocks",
    "frozn": "unknown train.tuning 'frozn': did you mean 'frozen'",
    "first:2": "unknown train.tuning 'first:2'",
}


@pytest.mark.parametrize("word", MISTAKES)
def test_mistakes_are_told_in_one_line(word):
    with pytest.raises(UserError) as caught:
        resolved(word)
    assert f"variant 'global': {MISTAKES[word]}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pretraining_has_no_such_word():
    with pytest.raises(UserError, match=r"train\.tuning=frozen is for detectors"):
        pretraining_runs.resolve("mae", "vit-mini", {"train.tuning": "frozen"})


def test_a_run_of_before_there_was_the_word_is_the_same():
    cfg = resolved("full")
    marks = {identity.fingerprint(cfg, ""), identity.fingerprint(resolved("last:2"), "")}
    marks.add(identity.fingerprint(resolved("frozen"), ""))
    assert len(marks) == 3
    del cfg.train.tuning
    assert identity.fingerprint(cfg, "") in marks
    assert checks.check(cfg, "here").backbone.net.blocks[0].training


def test_frozen_random_weights_are_noted():
    words = {"train.tuning": "frozen"}
    assert runs.left_random(runs.rows(STUDY, "mini", "", words, ["none"])) == []
    found = runs.rows(STUDY, "mini", "", words | {"train.init_weights": "none"}, ["none", "conv"])
    (note,) = runs.left_random(found)
    assert note.startswith("note: none, conv: the encoder's random weights stay as they are")


def test_a_step_costs_what_it_computes():
    """The meta device's count is that of the step; nothing of a frozen prefix is kept."""
    steps = {}
    for tuning in ("full", "last:2", "frozen"):
        cfg = resolved(tuning)
        model = config.instantiate(cfg.model)
        config.tune(model, cfg)
        steps[tuning] = training_step(cfg.model, 2, (128, 128), False, textbook=True, tuning=tuning)
        if tuning == "last:2":
            with textbook_attention(model):
                computed = count_step(model, torch.rand(2, 3, 128, 128), False)
            assert computed.macs == steps[tuning].macs
        assert steps[tuning].trained == sum(
            p.numel() for p in model.parameters() if p.requires_grad
        )
    full, last, frozen = steps.values()
    assert frozen.macs < last.macs < full.macs
    assert frozen.peak_bytes < last.peak_bytes < full.peak_bytes
    # Of two images forward only, where the whole takes a forward pass and two like it backward; and
    # no gradients from the neck into it.
    encoder = detector_cost(cfg.model).encoder.macs
    assert 2 * 1.9 * encoder < full.macs - frozen.macs < 2 * 2.1 * encoder
    assert training_macs(cfg.model, "frozen") < training_macs(cfg.model)


def test_show_optim_lists_what_trains():
    cfg = resolved("last:2")
    layers = [row[0] for row in show_optim.rows(cfg, checks.check(cfg, "here"))]
    assert {layer for layer in layers if layer.startswith("block")} == {"block 4", "block 5"}
    assert "patch embedding" not in layers
    shown = io.StringIO()
    show_optim.show(cfg, "global", Console(file=shown, width=200))
    assert "train.tuning last:2: " in shown.getvalue()
    assert "parameters of the encoder stay as they are" in shown.getvalue()
