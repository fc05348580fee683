"""The rounds of a study: those of `SEEDS=auto` follow what its tables say, and are gone on with."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pycocotools import mask as encoded
from rich.console import Console

from analysis import results, tables
from experiments import studies
from experiments.data.mini.detection import SIDE
from experiments.forecast.request import Request
from experiments.forecast.rounds import Rounds
from experiments.forecast.seeds import Limits
from experiments.jobs import sweep
from experiments.jobs.planned import Run, Stages
from experiments.launching.local import Local
from experiments.recipe import identity
from experiments.records import looks, read_json
from tests.analysis.conftest import write_run

NOISE = {"none": 0.25, "global": 0.05, "conv": 0.25}  # of boxes, in sides


def rounds(
    small_set, runs: Path, seeds: int | Limits, console: Console, of: str = ""
) -> Iterator[Stages]:
    request = Request(
        study=studies.find("global-vs-conv"), source="global-vs-conv", scale="mini", size="",
        seeds=seeds, sweep=sweep.parse(of), variants="none,global,conv", overrides="", runs=runs,
        **small_set,
    )  # fmt: skip
    return iter(Rounds(request, Local(0, 1), console))


def finish(todo: list[Run]) -> None:
    """As if they had been trained: detections near the objects, 65 seconds each."""
    for run in todo:
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
            config=identity.plain_config(run.cfg),
        )


def asked(scale: Path) -> dict[str, int]:
    """Seeds of each row, as the manifest of the study in the folder of a scale has them."""
    (manifest,) = (read_json(path) for path in scale.glob("global-vs-conv@*/study.json"))
    return dict(Counter(run["variant"] for run in manifest["runs"]))


def test_a_number_of_seeds_is_one_round(small_set, tmp_path):
    found = rounds(small_set, tmp_path, 2, Console(record=True, width=200))
    ((todo,),) = found
    assert asked(tmp_path / "mini") == dict.fromkeys(NOISE, 2)
    assert len(todo) == 6


def test_rows_get_seeds_until_they_are_decided_or_a_budget_is_spent(small_set, tmp_path):
    console = Console(record=True, width=200)
    found = rounds(small_set, tmp_path, Limits(17, ""), console)
    (one,) = next(found)
    assert asked(tmp_path / "mini") == dict.fromkeys(NOISE, 3)
    finish(one)
    (two,) = next(found)
    wanted = {"none": 4, "global": 3, "conv": 4}
    assert asked(tmp_path / "mini") == wanted
    assert sorted((r.variant, r.seed) for r in two) == [("conv", 3), ("none", 3)]
    # Stopped here, the same command goes on with that round, and says what was said before.
    found = rounds(small_set, tmp_path, Limits(17, "13m"), console)
    (again,) = next(found)
    assert asked(tmp_path / "mini") == wanted
    assert [run.folder for run in again] == [run.folder for run in two]
    finish(again)
    # Eleven runs take 11.9 minutes, the next two do not fit.
    assert next(found, None) is None
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
    (one,) = next(first)
    assert len(one) == 9
    assert {run.seed for run in one} == {sweep.SEED}
    (folder,) = (tmp_path / "mini").glob("global-vs-conv@*")
    finish(one[:4])
    # Stopped here: it goes on with those that are missing, and no table is made of them.
    again = rounds(*words)
    assert [len(stage) for stage in next(again)] == [5]
    (note,) = results.load(folder).notes
    assert note == "a sweep of optimizer.lr: its values are not chosen yet, call it again"
    finish(one[4:])
    (two,) = next(again)
    assert "optimizer.lr: none x2, global x1, conv x2" in console.export_text(clear=False)
    assert sorted({(run.variant, run.cfg.optimizer.lr) for run in two}) == [
        ("conv", 0.004), ("global", 0.002), ("none", 0.004)
    ]  # fmt: skip
    assert {run.seed for run in two} == {0, 1}
    finish(two)
    assert next(again, None) is None
    # All done, the same command has one round, of nothing to do; without the sweep, rows at the
    # recipe are the same runs.
    assert list(rounds(*words)) == [[]]
    loaded = results.load(folder)
    printed = " ".join(tables.markdown(loaded).split())
    assert "global: optimizer.lr=0.002 (x1), chosen by seed 1000, which is not compared" in printed
    assert "none: optimizer.lr=0.004 (x2, the last that was tried: there may be" in printed
    table = loaded.table.set_index("variant")
    assert table["factor"].to_dict() == {"none": 2, "global": 1, "conv": 2}
    assert table["seeds"].tolist() == [2, 2, 2]
    ((plain,),) = rounds(*words[:4])
    assert {run.variant for run in plain} == {"none", "conv"}
