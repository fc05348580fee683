"""Verdicts of disjoint sets of seeds are those of studies with these seeds alone."""

import json
import shutil

import pandas as pd
import pytest

from analysis import repeats, results
from experiments import records
from experiments.errors import UserError
from experiments.records import MANIFEST


@pytest.fixture
def four_seeds(study):
    """The rows none and global; seeds 2 and 3 are those of 0 and 1 the other way round."""
    manifest = json.loads((study / MANIFEST).read_text())
    manifest["variants"] = manifest["variants"][:2]
    manifest["runs"] = []
    for name in ("none", "global"):
        for seed in range(4):
            folder = study / f"{name}-{seed}"
            if seed > 1:
                shutil.copytree(study / f"{name}-{3 - seed}", folder)
                record = json.loads((folder / records.RECORD).read_text())
                (folder / records.RECORD).write_text(json.dumps(record | {"seed": seed}))
            manifest["runs"].append(dict(variant=name, seed=seed, folder=folder.name))
    (study / MANIFEST).write_text(json.dumps(manifest))
    return study


def test_each_set_is_as_if_the_study_had_no_other_seeds(four_seeds):
    found = repeats.load(four_seeds, 2)
    assert list(found["seeds"]) == ["0 1", "2 3"]
    assert set(found["variant"]) == {"global"}
    one, other = found.drop(columns=["set", "seeds"]).to_dict("records")
    assert one == pytest.approx(other)  # the same runs, in another order
    alone = results.load(four_seeds, seeds=[0, 1]).table.set_index("variant").loc["global"]
    assert one["diff"] == alone["ap_box_diff"]
    assert (one["low"], one["high"]) == (alone["ap_box_diff_low"], alone["ap_box_diff_high"])
    assert one["verdict"] == alone["ap_box_verdict"] in ("better", "undecided")
    whole = results.load(four_seeds).table.set_index("variant").loc["global"]
    assert whole["ap_box_diff_low"] > one["low"]  # four seeds say more


def test_totals():
    words = ["better", "better", "undecided", "worse", "undecided", "undecided"]
    table = pd.DataFrame(dict(variant=["a"] * 4 + ["b"] * 2, verdict=words))
    assert repeats.totals(table) == [
        "a: better in 2, worse in 1 of 4 sets",
        "b: decided in none of 2 sets",
    ]


@pytest.mark.parametrize("size", [1, 3, 5])
def test_too_few_seeds_end_in_a_line(four_seeds, size):
    shutil.rmtree(four_seeds / "global-3")
    shutil.rmtree(four_seeds / "global-2")
    with pytest.raises(UserError, match="has 2 seeds of all rows, for sets of"):
        repeats.load(four_seeds, size)


def test_command(four_seeds, analysis):
    code, printed = analysis("repeats", four_seeds, "--size", 2)
    assert code == 0
    assert len(pd.read_csv(four_seeds / "repeats.csv")) == 2
    assert "of 2 sets" in printed
    code, printed = analysis("repeats", four_seeds, "--size", 9)
    assert code == 2
