"""Seeds that are added because of what a table said are another look, and looks share 5 %."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest

from analysis import bootstrap, looks, results
from experiments import records
from experiments.records import MANIFEST
from experiments.records import looks as kept


def grow(study, **seeds: int) -> None:
    """Ask for, and finish, so many runs of each row: copies of those that are there."""
    manifest = json.loads((study / MANIFEST).read_text())
    asked = {(run["variant"], run["seed"]) for run in manifest["runs"]}
    for name, count in seeds.items():
        for seed in range(count):
            folder = study / f"{name}-{seed}"
            if not folder.exists():
                there = study / f"{name}-{seed % 2}"
                if not there.exists():
                    there = study / f"{name}-0"
                shutil.copytree(there, folder)
                record = records.read(folder / records.RECORD)
                records.write(folder, dataclasses.replace(record, seed=seed))
            if (name, seed) not in asked:
                manifest["runs"].append(dict(variant=name, seed=seed, folder=folder.name))
    (study / MANIFEST).write_text(json.dumps(manifest))


@pytest.fixture
def three_rows(study):
    """All rows have two seeds."""
    grow(study, own=2)
    return study


def rows_of(study, **words) -> pd.DataFrame:
    return results.load(study, **words).table.set_index("variant")


def width(row: pd.Series) -> float:
    return row["ap_box_diff_high"] - row["ap_box_diff_low"]


def test_a_table_from_new_seeds_is_a_look_and_the_same_again_is_none(three_rows):
    first = rows_of(three_rows)
    assert first["look"].tolist() == [pd.NA, 1, 1]
    (look,) = kept.read(three_rows)
    assert look["runs"]["global"] == ["global-0", "global-1"]
    said = look["said"]["global"]
    assert said["verdict"] == first["ap_box_verdict"]["global"]
    assert said["low"] == pytest.approx(first["ap_box_diff_low"]["global"], abs=1e-3)
    assert (said["look"], said["error"], said["seeds"]) == (1, 0.04, 2)
    pd.testing.assert_frame_equal(rows_of(three_rows), first)
    assert kept.read(three_rows) == [look]


def test_each_look_has_its_share_of_the_error(three_rows):
    results.load(three_rows)
    grow(three_rows, none=4, own=4, **{"global": 4})
    found = results.load(three_rows)
    rows = found.table.set_index("variant")
    assert rows["look"].tolist() == [pd.NA, 2, 2]
    draws = {
        name: {seed: bootstrap.of_run(three_rows / f"{name}-{seed}") for seed in range(4)}
        for name in rows.index
    }
    estimate = bootstrap.against("none", draws)["own"]["AP"]
    at_second = dataclasses.replace(estimate, error=kept.error(2))
    assert rows.loc["own", "ap_box_diff_low"] == at_second.interval()[0]
    assert at_second.interval()[0] < estimate.interval()[0]
    assert any(
        note.startswith("look 2, of 4 seeds, which may err in 0.13 %") for note in found.notes
    )
    # Fewer seeds again, that were looked at: the look of then. Others: a look that is new.
    manifest = json.loads((three_rows / MANIFEST).read_text())
    for count, number in ((2, 1), (3, 3), (4, 2)):
        runs = [run for run in manifest["runs"] if run["seed"] < count]
        (three_rows / MANIFEST).write_text(json.dumps(manifest | {"runs": runs}))
        assert rows_of(three_rows)["look"]["own"] == number


def test_what_was_said_of_a_row_stands_until_it_has_new_runs(three_rows):
    """Others, and the base, got more seeds: all is as if they had not."""
    first = rows_of(three_rows)
    grow(three_rows, none=5, own=5)
    second = rows_of(three_rows)
    assert second["look"].tolist() == [pd.NA, 1, 2]
    compared = [c for c in first if "_diff" in c or "verdict" in c]
    pd.testing.assert_series_equal(
        second.loc["global", compared], first.loc["global", compared], check_dtype=False
    )
    assert second["seeds"].tolist() == [5, 2, 5]
    assert [list(look["said"]) for look in kept.read(three_rows)] == [["global", "own"], ["own"]]


def test_rows_that_are_added_later_count_for_all(three_rows):
    """A table of one row says more of it than one of two; the rows of both hold at once."""
    whole = json.loads((three_rows / MANIFEST).read_text())
    part = {
        "variants": [v for v in whole["variants"] if v["name"] != "own"],
        "runs": [run for run in whole["runs"] if run["variant"] != "own"],
    }
    (three_rows / MANIFEST).write_text(json.dumps(whole | part))
    alone = rows_of(three_rows)
    (three_rows / MANIFEST).write_text(json.dumps(whole))
    both = rows_of(three_rows)
    assert both["look"].tolist() == [pd.NA, 1, 1]
    assert width(both.loc["global"]) > width(alone.loc["global"])


def test_rows_that_are_left_out_count_still(three_rows):
    """Whoever goes on with the row that is nearest to a verdict has chosen it among all."""
    first = rows_of(three_rows)
    whole = json.loads((three_rows / MANIFEST).read_text())
    part = {
        "variants": [v for v in whole["variants"] if v["name"] != "own"],
        "runs": [run for run in whole["runs"] if run["variant"] != "own"],
    }
    (three_rows / MANIFEST).write_text(json.dumps(whole | part))
    assert width(rows_of(three_rows).loc["global"]) == width(first.loc["global"])
    grow(three_rows, none=4, **{"global": 4})
    more = rows_of(three_rows).loc["global"]
    assert more["look"] == 2
    alone = dataclasses.replace(estimate_of_four(three_rows), error=kept.error(2))
    assert width(more) == pytest.approx(np.ptp(dataclasses.replace(alone, rows=2).interval()))
    assert width(more) > np.ptp(alone.interval())


def estimate_of_four(study) -> bootstrap.Estimate:
    """Of global alone against the base, of four seeds."""
    draws = {
        name: {seed: bootstrap.of_run(study / f"{name}-{seed}") for seed in range(4)}
        for name in ("none", "global")
    }
    return bootstrap.against("none", draws)["global"]["AP"]


def test_runs_of_another_config_are_not_looked_at_before(three_rows):
    results.load(three_rows)
    manifest = json.loads((three_rows / MANIFEST).read_text())
    for run in manifest["runs"]:
        shutil.copytree(three_rows / run["folder"], three_rows / f"other-{run['folder']}")
        run["folder"] = f"other-{run['folder']}"
    (three_rows / MANIFEST).write_text(json.dumps(manifest))
    assert rows_of(three_rows)["look"].tolist() == [pd.NA, 1, 1]


def test_before_all_runs_are_done_there_is_no_verdict_and_no_look(three_rows):
    (three_rows / "global-1" / records.RECORD).rename(three_rows / "kept.json")
    grow(three_rows, **{"global": 1})
    found = results.load(three_rows)
    rows = found.table.set_index("variant")
    assert rows["ap_box_verdict"].tolist()[1:] == ["one seed", found.table["ap_box_verdict"][2]]
    assert rows["look"].tolist() == [pd.NA, pd.NA, 1]
    (three_rows / "none-1" / records.RECORD).unlink()
    (three_rows / "kept.json").rename(three_rows / "global-1" / records.RECORD)
    found = results.load(three_rows)
    rows = found.table.set_index("variant")
    # The look at "own" was among two runs of the base: what it said stands.
    assert rows["ap_box_verdict"]["global"] == ""
    # Nor an interval to read it from: whoever stops there has looked.
    assert not pd.isna(rows["ap_box_diff"]["global"])
    ends = [f"ap_box_diff_{end}" for end in ("low", "high")]
    assert rows.loc["global", ends].isna().all()
    assert rows.loc["own", ends].notna().all()
    assert rows["look"].tolist() == [pd.NA, pd.NA, 1]
    assert "global: no verdict yet, runs done: none 1 of 2" in found.notes


def test_sets_of_seeds_are_no_looks(three_rows):
    results.load(three_rows, seeds=[0, 1])
    assert kept.read(three_rows) == []


def test_a_folder_that_cannot_be_written_to_keeps_none(three_rows, monkeypatch):
    def refuse(*_):
        raise OSError("read-only")

    monkeypatch.setattr(kept, "write", refuse)
    assert rows_of(three_rows)["look"].tolist() == [pd.NA, 1, 1]


def test_verdicts_for_programs(three_rows, analysis):
    code, printed = analysis("verdicts", three_rows, "--delta", 1)
    assert code == 0
    found = json.loads(printed)
    assert list(found) == ["none", "global", "own"]
    assert found["global"] == rows_of(three_rows, delta=1)["ap_box_verdict"]["global"] != ""
    grow(three_rows, own=4)
    code, printed = analysis("verdicts", three_rows)
    assert code == 2
    assert "own has other seeds than the base none (2, 3)" in printed


def test_a_look_is_numbered_by_the_rows_own_runs():
    past = [
        dict(runs={"a": ["a0"], "b": ["b0"]}, said={"b": {}}),
        dict(runs={"a": ["a0", "a1"], "b": ["b0"]}, said={}),
        dict(runs={"a": ["a0", "a1"], "b": ["b0", "b1"]}, said={"b": {}}),
    ]

    def look(*names) -> tuple[int, bool]:
        found = looks.number(past, "a", {"a": ("a0", "a1"), "b": names})["b"]
        return found.number, found.new

    assert look("b0") == (1, False)
    assert look("b0", "b1") == (2, False)
    assert look("b0", "b1", "b2") == (3, True)
    assert look("b1") == (2, True)  # it was not there at the first
    assert look("c0") == (1, True)
    assert looks.number(past, "a", {"a": ("c0",), "b": ("b0",)})["b"].number == 1
    assert looks.number(past, "a", {"b": ("b0",)}) == {}
