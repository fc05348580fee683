"""Reach in a study's results: its columns and files, and runs that did not learn the cue."""

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest

from analysis import bootstrap, foreign, provenance, reach, report, results, tables
from experiments import records
from experiments.evaluation import reach as of_runs
from tests.analysis.test_results import rewrite
from tests.experiments.evaluation.test_matches import random_set
from tests.experiments.evaluation.test_reach import INFO, some_set

MARK = "cue not learned: says nothing about propagation"


def counts(shown: int, same: int = 80, next_window: int = 50) -> dict[str, list[int]]:
    """Of 100 found at each distance so many right."""
    right = {"self": shown, "0": same, "1": next_window}
    return {distance: [150, 100, n] for distance, n in right.items()}


@pytest.fixture
def with_cue(study):
    """The study with a reach: all learned the cue, "none" 0.98 and 1 where it is shown."""
    for run, found in {
        "none-0": counts(98),
        "none-1": counts(100, next_window=40),
        "global-0": counts(99, 99, 98),
        "global-1": counts(100, 100, 99),
        "own-0": counts(99, 90, 60),
    }.items():
        rewrite(study / run, reach=found)
    return study


def mark(study, *runs: str) -> None:
    for run in runs:
        rewrite(study / run, reach=counts(97))


def test_shares_stand_in_the_table(with_cue):
    found = results.load(with_cue)
    rows = found.table.set_index("variant")
    assert rows.loc["none", ["reach_self", "reach_0", "reach_1"]].tolist() == [0.99, 0.8, 0.45]
    assert rows.cue_not_learned.tolist() == [0, 0, 0]
    assert not [note for note in found.notes if MARK in note]
    assert rows.ap_box_verdict["global"] == results.load(with_cue).table.ap_box_verdict[1]
    text = tables.reaches(found.table).set_index("variant")
    assert text.loc["none"].to_dict() == {
        "self": "0.99", "same": "0.80", "1": "0.45",
        "runs that learned it (95 %)": "1.00 (0.34 .. 1.00)",
    }  # fmt: skip
    assert text.loc["own"].tolist()[:3] == ["0.99", "0.90", "0.60"]
    assert "Colour right" in tables.markdown(found)
    assert tables.summary(found.table).seeds.tolist() == ["2", "2", "1"]
    assert "chance is 0.5" in tables.caption(found)
    assert MARK in tables.caption(found)


def test_where_nothing_is_found_there_is_no_share(with_cue):
    for run in ("none-0", "none-1"):
        rewrite(with_cue / run, reach=counts(100) | {"1": [9, 0, 0]})
    text = tables.reaches(results.load(with_cue).table).set_index("variant")
    assert text.loc["none"].tolist()[:3] == ["1.00", "0.80", "-"]


def test_without_a_cue_nothing_is_said_of_reach(study, analysis):
    found = results.load(study)
    assert not [c for c in found.table if c.startswith(("reach", "cue"))]
    for form in ("md", "latex", "html", "text"):
        text = tables.whole(found, form)
        assert "colour" not in text
        assert "reach" not in text
    code, _ = analysis("study", study)
    assert code == 0
    assert list(study.glob("reach*")) == []
    runs = pd.read_csv(study / "runs.csv")
    assert not [c for c in runs if c.startswith(("reach", "cue"))]


def test_a_run_that_did_not_learn_the_cue_enters_no_verdict(with_cue):
    """Of two seeds one is left: mean, interval and verdict are those of that one alone."""
    mark(with_cue, "global-1")
    found = results.load(with_cue)
    row = found.table.set_index("variant").loc["global"]
    assert (row.seeds, row.cue_not_learned) == (1, 1)
    first = json.loads((with_cue / "global-0" / "record.json").read_text())
    assert row.ap_box == first["box"]["AP"]
    assert row.ap75_mask == first["mask"]["AP75"]
    assert pd.isna(row.ap_box_std)
    base = [bootstrap.of_run(with_cue / f"none-{seed}") for seed in (0, 1)]
    ours = [bootstrap.of_run(with_cue / "global-0")]
    expected = dataclasses.replace(bootstrap.paired(ours, base)["AP"], rows=2, error=0.04)
    assert (row.ap_box_diff_low, row.ap_box_diff_high) == pytest.approx(expected.interval())
    assert row.ap_box_verdict == "one seed"
    alone = bootstrap.bootstrap(ours)["AP"]
    assert (row.ap_box_low, row.ap_box_high) == alone.interval()
    assert row.reach_self == 0.99
    assert found.notes[0] == (
        f"global: {MARK}: seed 1 (0.970 right where it is shown); left out of mean, interval and "
        "verdict"
    )
    assert tables.summary(found.table).set_index("variant").seeds["global"] == "1 of 2"
    assert MARK in " ".join(tables.markdown(found).split())


def test_a_row_of_which_none_did_has_no_verdict(with_cue):
    mark(with_cue, "own-0")
    found = results.load(with_cue)
    row = found.table.set_index("variant").loc["own"]
    assert (row.seeds, row.cue_not_learned) == (0, 1)
    assert row.macs == 1_400_000_000
    for column in ("ap_box", "ap_box_low", "ap_box_diff", "ap75_mask_diff_low", "reach_self"):
        assert pd.isna(row[column])
    assert row.ap_box_verdict == ""
    text = tables.summary(found.table).set_index("variant").loc["own"]
    assert (text["seeds"], text["box AP"], text["verdict"]) == ("0 of 1", "", "cue not learned")
    provenance.check_publishable(found)  # it is finished


def test_a_base_of_which_none_did_leaves_no_verdict(with_cue):
    mark(with_cue, "none-0", "none-1")
    table = results.load(with_cue).table
    assert table.ap_box_diff.isna().all()
    assert (table.ap_box_verdict == "").all()
    assert table.ap_box.notna().tolist() == [False, True, True]


def test_a_study_of_which_none_did(with_cue, analysis):
    mark(with_cue, "none-0", "none-1", "global-0", "global-1", "own-0")
    assert results.load(with_cue).table.ap_box.isna().all()
    code, printed = analysis("study", with_cue)
    assert code == 0
    assert printed.count(MARK.partition(":")[0]) > 3
    assert (with_cue / "ap_vs_macs.png").is_file()


def test_the_files_of_a_study(with_cue, analysis):
    mark(with_cue, "global-1")
    code, printed = analysis("study", with_cue)
    assert code == 0
    names = ["reach.csv", "runs.csv", *(f"reach_curve.{kind}" for kind in ("png", "svg", "csv"))]
    assert all(str(with_cue / name) in printed for name in names)
    found = pd.read_csv(with_cue / "reach.csv", dtype={"distance": str})
    assert list(found) == ["variant", "seed", "distance", "annotated", "objects", "right"]
    assert len(found) == 5 * 3
    assert list(dict.fromkeys(found.variant)) == ["none", "global", "own"]
    keys = ["variant", "seed", "distance"]
    assert found.set_index(keys).loc[("none", 1, "1")].tolist() == [150, 100, 40]
    runs = pd.read_csv(with_cue / "runs.csv").set_index(["variant", "seed"])
    assert runs.index.tolist() == [
        *(("none", 0), ("none", 1), ("global", 0), ("global", 1), ("own", 0))
    ]
    assert runs.cue_learned.tolist() == [True, True, True, False, True]
    record = json.loads((with_cue / "global-1" / "record.json").read_text())
    run = runs.loc[("global", 1)]
    assert run.ap_box == pytest.approx(record["box"]["AP"])
    assert run.reach_self == 0.97
    for column in ("train_seconds", "evaluate_seconds", "precision", "device", "git_commit"):
        assert run[column] == record[column]
    assert run.finished == record["finished"]


def test_foreign_rows_have_a_reach_if_they_have_boxes(with_cue, tmp_path):
    data = records.read(with_cue / "own-0" / records.RECORD).data
    truth = json.loads(Path(data["val"]).read_text()) | {"info": INFO}
    for i, part in enumerate((*truth["categories"], *truth["annotations"])):
        of_object = dict(shows_cue=i % 3 == 0, cue_distance=i % 4, cue_by_convs=i % 5 < 2)
        part |= dict(cue=("warm", "cold")[i % 2], **of_object)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    for path in with_cue.glob("*/record.json"):
        rewrite(path.parent, data={**data, "val": str(tmp_path / "truth.json")})
    for name, left_out in (("theirs", "segmentation"), ("masks", "bbox")):
        _, detections = random_set(3, images=40)
        detections = [{k: v for k, v in d.items() if k != left_out} for d in detections]
        (tmp_path / "found.json").write_text(json.dumps(detections))
        folder = foreign.add(with_cue, tmp_path / "found.json", name)
        found = records.read(folder / records.RECORD).reach
        assert found == (of_runs.compute(truth, detections) if name == "theirs" else None)
    table = results.load(with_cue).table.set_index("variant")
    assert table.cue_not_learned.to_dict()["masks"] == 0
    assert table.seeds["masks"] == 1
    assert pd.isna(table.reach_self["masks"])
    assert tables.summary(table.reset_index()).iloc[-2:, -1].isna().sum() == 0


def test_the_report_marks_them(with_cue, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "PICTURES", {})
    mark(with_cue, "global-1", "own-0")
    for path in report.write([with_cue], tmp_path / "out"):
        text = path.read_text()
        assert f"{MARK} (1 of 2 seeds)" in text
        assert f"{MARK} (1 of 1 seeds)" in text
        assert f"{MARK}: own" in text  # in the overview
        assert "not finished: own" not in text


def test_it_can_be_counted_anew(with_cue, tmp_path, analysis):
    truth, detections = some_set(images=40, seed=0)
    files = tmp_path / "truth.json", tmp_path / "found.json"
    for path, content in zip(files, (truth, detections), strict=True):
        path.write_text(json.dumps(content))
    code, printed = analysis("reach", *files)
    assert code == 0
    lines = [line.split() for line in printed.splitlines()]
    for distance, numbers in of_runs.compute(truth, detections).items():
        share = f"{numbers[2] / numbers[1]:.2f}"
        assert [distance, *map(str, numbers), share] in lines
    assert MARK in printed  # they are random

    data = dict(kind="coco", digest="d", train="", val=str(files[0]))
    run = with_cue / "own-0"
    rewrite(run, data=data)
    (run / "coco_instances_results.json").write_text(json.dumps(detections))
    code, again = analysis("reach", run)
    assert again.splitlines()[2:] == printed.splitlines()[2:]


def test_other_data_are_refused_in_a_line(study, analysis):
    code, printed = analysis("reach", study / "own-0")
    assert code == 2
    assert "does not say which objects show a cue" in printed
    code, printed = analysis("reach", study / "nowhere")
    assert code == 2
    assert len(printed.splitlines()) == 1


def test_runs_of_before_reach_was_recorded_have_none():
    runs = pd.DataFrame(dict(variant=["a", "a", "b"], seed=[0, 1, 0]))
    assert reach.not_learned(runs).tolist() == [False] * 3
    assert reach.distances(runs) == []
    assert reach.curves(runs).empty
    assert reach.counts(runs).empty
    runs["reach"] = [None, {"self": [9, 9, 9]}, float("nan")]
    assert reach.not_learned(runs).tolist() == [False] * 3
    assert reach.counts(runs).objects.tolist() == [9]
