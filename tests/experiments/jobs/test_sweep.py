"""Sweeps: factors on a row's own value, and the best of them, chosen by other seeds."""

import dataclasses
from types import SimpleNamespace

import pytest

from experiments import records, studies
from experiments.errors import UserError
from experiments.jobs import runs, sweep
from experiments.jobs.sweep import Sweep
from tests.experiments.records.test_records import make


def test_words():
    assert sweep.parse("") is None
    assert sweep.parse("optimizer.lr=2,1,0.5") == Sweep("optimizer.lr", (0.5, 1, 2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer.lr=0.5,2", "lacks the factor 1, the recipe as it is"),
        ("optimizer.lr=1", "needs two or more factors"),
        ("optimizer.lr=1,2,2", "needs two or more factors, each once"),
        ("optimizer.lr=1,-1", "not of the form optimizer.lr=0.5,1,2"),
        ("optimizer.lr=1,nan", "not of the form"),
        ("optimizer.lr=a,1", "not of the form"),
        ("0.5,1,2", "not of the form"),
        ("train.log_period=1,2", "does not change what a run finds"),
        ("train.seed=1,2", "train.seed in SWEEP has no effect: choose with SEEDS="),
    ],
)
def test_wrong_words(text, message):
    with pytest.raises(UserError, match=message):
        sweep.parse(text)


def swept(text: str, **overrides):
    study = studies.find("global-vs-conv")
    rows = runs.rows(study, "mini", "", overrides, ["none", "conv"])
    return rows, sweep.rows_of(sweep.parse(text), study, "mini", rows, overrides)


def test_each_row_at_each_factor_of_its_own_value():
    rows, found = swept("optimizer.lr=0.5,1,2", **{"optimizer.lr": 0.01})
    assert list(found) == ["none", "conv"]
    assert [row.cfg.optimizer.lr for row in found["conv"].values()] == [0.005, 0.01, 0.02]
    assert found["conv"][1] is rows[1]
    assert found["conv"][2].cfg.model == rows[1].cfg.model
    _, found = swept("train.max_iter=1,1.1,1.5", **{"train.max_iter": 100})
    assert [row.cfg.train.max_iter for row in found["none"].values()] == [100, 110, 150]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer.l=1,2", "key 'optimizer.l' in SWEEP: did you mean 'optimizer.lr'"),
        ("optimizer.betas=1,2", "is \\[0.9, 0.999\\], no number to multiply"),
        ("train.amp=1,2", "is False, no number"),
        ("train.max_iter=1,0.001", "train.max_iter=320 times 0.001 is no whole number"),
        ("train.ema=1,2", "train.ema=0.0 is 0"),
        ("dataloader.train.total_batch_size=1,1.5", "does not divide"),
    ],
)
def test_what_does_not_fit(text, message):
    with pytest.raises(UserError, match=message):
        swept(text)


def test_the_best_learned_the_cue_and_is_nearest_to_the_recipe(tmp_path):
    def run(factor: float, ap: float | None, reach=None):
        folder = tmp_path / str(factor)
        folder.mkdir(exist_ok=True)
        box = dict.fromkeys(records.COCO_FIGURES, ap)
        records.write(folder, dataclasses.replace(make(), box=box, reach=reach))
        return SimpleNamespace(folder=str(folder))

    def best(**aps) -> float:
        return sweep.best({float(f[1:].replace("_", ".")): run(f, *of) for f, of in aps.items()})

    assert best(x0_5=(10.0,), x1=(12.0,), x2=(13.0,)) == 2
    assert best(x0_5=(13.0,), x1=(13.0,), x2=(13.0,)) == 1
    assert best(x1=(None,), x2=(0.1,)) == 2
    learned, not_learned = ({"self": [9, 9, right]} for right in (9, 5))
    assert best(x1=(30.0, learned), x2=(40.0, not_learned)) == 1
