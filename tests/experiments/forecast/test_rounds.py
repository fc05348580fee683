"""The rounds of a study: those of `SEEDS=auto` follow what its tables say, and are gone on with."""

import json
from pathlib import Path

import numpy as np
from pycocotools import mask as encoded
from rich.console import Console

from analysis import results, tables
from experiments import studies
from experiments.data.mini.detection import SIDE
from experiments.forecast.rounds import Request, Round, Rounds
from experiments.forecast.seeds import Limits
from experiments.jobs import sweep
from experiments.recipe import config
from experiments.records import looks
from tests.analysis.conftest import write_run

NOISE = {"none": 0.25, "global": 0.05, "conv": 0.25}  # of boxes, in sides


def rounds(small_set, runs: Path, seeds: int | Limits, console: Console, of: str = "") -> Rounds:
    request = Request(
        study=studies.find("global-vs-conv"), source="global-vs-conv", scale="mini", size="",
        seeds=seeds, sweep=sweep.parse(of), variants="none,global,conv", overrides="",
        images="", runs=runs,
        command="python -m experiments run global-vs-conv", delta=None, processes=1, here=True,
        yes=False, **small_set,
    )  # fmt: skip
    return Rounds(request, console)


def finish(round_: Round) -> None:
    """As if they had been trained: detections near the objects, 65 seconds each."""
    for run in round_.todo:
        truth = json.loads(Path(run.data.val.json_file).read_text())
        # All rows of a seed are a little better or worse together.
        # The recipe is the best one for "global", twice its rate for the others.
        rate = run.cfg.optimizer.lr / 0.002
        worse = abs(np.log2(rate if run.variant == "global" else rate / 2))
        noise = (NOISE[run.variant] + 0.05 * worse) * (
            1 + 0.1 * np.random.default_rng(run.seed).normal()
        )
        random = np.random.default_rng([run.seed, *run.variant.encode()])
        results = []
        for annotation in truth["annotations"]:
            x, y, w, h = annotation["bbox"]
            dx, dy, dw, dh = noise * random.normal(size=4)
            box = [x + dx * w, y + dy * h, w * np.exp(dw), h * np.exp(dh)]
            words = dict(image_id=annotation["image_id"], category_id=annotation["category_id"])
            corners = np.clip([box[0], box[1], box[0] + box[2], box[1] + box[3]], 0, SIDE)
            inside = [*corners[:2], *(corners[2:] - corners[:2]).clip(1)]
            (mask,) = encoded.frPyObjects(np.array([inside]), SIDE, SIDE)
            words |= dict(segmentation=mask | dict(counts=mask["counts"].decode()))
            results.append(words | dict(bbox=box, score=random.uniform()))
        write_run(
            Path(run.folder),
            Path(run.data.val.json_file),
            results,
            study=run.study,
            variant=run.variant,
            seed=run.seed,
            fingerprint=run.fingerprint,
            config=config.plain_config(run.cfg),
        )


def asked(round_: Round) -> dict[str, int]:
    """Seeds of each row."""
    return {row: sum(run.variant == row for run in round_.runs) for row in NOISE}


def test_a_number_of_seeds_is_one_round(small_set, tmp_path):
    found = rounds(small_set, tmp_path, 2, Console(record=True, width=200))
    assert asked(found.next()) == dict.fromkeys(NOISE, 2)
    assert found.next() is None


def test_rows_get_seeds_until_they_are_decided_or_a_budget_is_spent(small_set, tmp_path):
    console = Console(record=True, width=200)
    found = rounds(small_set, tmp_path, Limits(17, ""), console)
    one = found.next()
    assert asked(one) == dict.fromkeys(NOISE, 3)
    finish(one)
    two = found.next()
    assert asked(two) == {"none": 4, "global": 3, "conv": 4}
    assert sorted((r.variant, r.seed) for r in two.todo) == [("conv", 3), ("none", 3)]
    # Stopped here, the same command goes on with that round, and says what was said before.
    found = rounds(small_set, tmp_path, Limits(17, "13m"), console)
    again = found.next()
    assert asked(again) == asked(two)
    assert [run.folder for run in again.todo] == [run.folder for run in two.todo]
    finish(again)
    # Eleven runs take 11.9 minutes, the next two do not fit.
    assert found.next() is None
    printed = console.export_text()
    assert "with 3 seeds: global better, conv undecided" in printed
    assert "with 4 seeds: global better, conv undecided" in printed
    assert "BUDGET=13m is spent: not decided: conv" in printed
    (folder,) = (tmp_path / "mini").glob("global-vs-conv@*")
    first, second = looks.read(folder)
    assert {row: said["verdict"] for row, said in first["said"].items()} == {
        "global": "better", "conv": "undecided"
    }  # fmt: skip
    assert list(second["said"]) == ["conv"]
    assert second["said"]["conv"]["look"] == 2


def test_a_sweep_compares_rows_at_what_other_seeds_chose(small_set, tmp_path):
    console = Console(record=True, width=200)
    words = (small_set, tmp_path, 2, console, "optimizer.lr=0.5,1,2")
    first = rounds(*words)
    one = first.next()
    assert len(one.runs) == 9
    assert {run.seed for run in one.runs} == {sweep.SEED}
    (folder,) = (tmp_path / "mini").glob("global-vs-conv@*")
    finish(Round([], one.runs, one.todo[:4]))
    # Stopped here: it goes on with those that are missing, and no table is made of them.
    again = rounds(*words)
    assert len(again.next().todo) == 5
    (note,) = results.load(folder).notes
    assert note == "a sweep of optimizer.lr: its values are not chosen yet, call it again"
    finish(Round([], one.runs, one.todo[4:]))
    two = again.next()
    assert "optimizer.lr: none x2, global x1, conv x2" in console.export_text(clear=False)
    assert sorted({(run.variant, run.cfg.optimizer.lr) for run in two.runs}) == [
        ("conv", 0.004), ("global", 0.002), ("none", 0.004)
    ]  # fmt: skip
    assert {run.seed for run in two.runs} == {0, 1}
    finish(two)
    assert again.next() is None
    # All done, the same command has one round, of nothing to do; without the sweep, rows at the
    # recipe are the same runs.
    assert rounds(*words).next().todo == []
    loaded = results.load(folder)
    printed = " ".join(tables.markdown(loaded).split())
    assert "global: optimizer.lr=0.002 (x1), chosen by seed 1000, which is not compared" in printed
    assert "none: optimizer.lr=0.004 (x2, the last that was tried: there may be" in printed
    table = loaded.table.set_index("variant")
    assert table["factor"].to_dict() == {"none": 2, "global": 1, "conv": 2}
    assert table["seeds"].tolist() == [2, 2, 2]
    plain = rounds(*words[:4]).next()
    assert {run.variant for run in plain.todo} == {"none", "conv"}
