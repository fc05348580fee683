"""Two runs side by side, as pycocotools scores them."""

import dataclasses
import json

import numpy as np
import pytest

from analysis import compare
from experiments import records
from experiments.errors import UserError
from experiments.records import COCO_FIGURES
from tests.experiments.evaluation.test_matches import pycocotools, random_set
from tests.experiments.records.test_records import make


@pytest.fixture
def runs(tmp_path):
    """Two detectors on one set: the second has a sixth of the first's detections."""
    truth, results = random_set(3, images=60)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    data = {"digest": "d", "val": str(tmp_path / "truth.json")}
    kept = results[::6]
    made = []
    for name, found, words in (
        ("ours", results, dict(macs=3_000_000_000)),
        ("base", kept, dict(config={"model": {"count": 0}, "train": {"seed": 0}})),
    ):
        folder = tmp_path / name
        folder.mkdir()
        words = dict(config={"model": {"count": 4}, "train": {"seed": 0}}, data=data) | words
        records.write(folder, make(**words))
        (folder / "coco_instances_results.json").write_text(json.dumps(found))
        made.append((folder, found))
    return truth, *made


def test_figures_and_differences_are_pycocotools(runs):
    truth, (ours, found), (base, kept) = runs
    table = compare.ap_table(ours, base).set_index(["kind", "figure"])
    for kind in ("box", "mask"):
        with_all = pycocotools(truth, found, kind).stats * 100
        with_less = pycocotools(truth, kept, kind).stats * 100
        for i, figure in enumerate(COCO_FIGURES[:6]):
            row = table.loc[kind, figure]
            assert row.ours == pytest.approx(with_all[i], abs=1e-9)
            assert row.base == pytest.approx(with_less[i], abs=1e-9)
            assert row.difference == pytest.approx(with_all[i] - with_less[i], abs=1e-9)
            assert row.low < row.difference < row.high
            assert row.verdict == ("better" if row.low > 0 else "undecided")
    assert table.loc["box", "AP"].verdict == "better"


def test_the_other_way_round_is_the_negative(runs):
    _, (ours, _), (base, _) = runs
    there, back = compare.ap_table(ours, base), compare.ap_table(base, ours)
    assert np.allclose(there[["low", "high"]], -back[["high", "low"]])
    assert back.verdict.iloc[0] == "worse"


def test_the_command_says_what_changed_and_costs(runs, analysis):
    _, (ours, _), (base, _) = runs
    code, printed = analysis("compare", ours, base, "--top", 2)
    assert code == 0
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert lines[0] == "model.count: 0 -> 4"
    assert "GMACs 2.00 3.00 1.50" in lines
    for kind in ("box", "mask"):
        start = lines.index(f"{kind} AP of the categories that moved most")
        moved = compare.categories(ours, base, kind)
        assert lines[start + 3].startswith(f"{moved.category[0]} {moved.objects[0]} ")
        assert lines[start + 5] == ""
        start = lines.index(f"{kind} AP: what the images that moved it most add to the difference")
        assert lines[start + 3].startswith(f"{compare.images(ours, base, kind).image[0]} ")


def test_a_run_that_did_not_learn_the_cue_has_no_verdict(runs, analysis):
    _, (ours, _), (base, _) = runs
    record = records.read(ours / "record.json")
    for right, says in ((98, True), (97, False)):
        records.write(ours, dataclasses.replace(record, reach={"self": [100, 100, right]}))
        assert (compare.ap_table(ours, base)["verdict"] != "").all() == says
        assert (compare.ap_table(base, ours)["verdict"] != "").all() == says
        assert ("none, seed 0: cue not learned" in analysis("compare", ours, base)[1]) != says


def test_unknown_costs_are_empty(runs, analysis):
    _, (ours, _), (base, _) = runs
    record = dataclasses.replace(records.read(base / records.RECORD), params=None, macs=None)
    records.write(base, record)
    code, printed = analysis("compare", ours, base, "--top", 0)
    assert code == 0
    assert "nan" not in printed
    lines = [line.split() for line in printed.splitlines()]
    assert ["GMACs", "3.00"] in lines
    assert ["params", "M", "1.00"] in lines


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_categories_are_pycocotools(runs, kind):
    truth, (ours, found), (base, kept) = runs
    table = compare.categories(ours, base, kind)
    assert table.difference.abs().is_monotonic_decreasing
    table = table.set_index("category")
    for column, results in (("ours", found), ("base", kept)):
        scores = pycocotools(truth, results, kind)
        names = {c["id"]: c["name"] for c in truth["categories"]}
        for k, number in enumerate(scores.params.catIds):
            precision = scores.eval["precision"][:, :, k, 0, -1]
            if (precision < 0).all():
                assert names[number] not in table.index
            else:
                expected = 100 * precision.mean()
                assert table[column][names[number]] == pytest.approx(expected, abs=1e-9)
    assert ((table.low <= table.difference) & (table.difference <= table.high)).all()


def test_images_add_what_leaving_them_out_takes_away(runs):
    truth, (ours, found), (base, kept) = runs
    table = compare.images(ours, base)
    assert len(table) == 60
    assert table.adds.abs().is_monotonic_decreasing
    whole = [pycocotools(truth, results, "box").stats[0] for results in (found, kept)]
    for row in (table.iloc[0], table.iloc[7]):
        less = dict(
            truth,
            images=[i for i in truth["images"] if i["id"] != row.image],
            annotations=[a for a in truth["annotations"] if a["image_id"] != row.image],
        )
        without = [
            pycocotools(less, [r for r in results if r["image_id"] != row.image], "box").stats[0]
            for results in (found, kept)
        ]
        adds = 100 * ((whole[0] - whole[1]) - (without[0] - without[1]))
        assert row.adds == pytest.approx(adds, abs=1e-9)


def refused(analysis, ours, base) -> str:
    """What the command says to two runs that it does not compare: one line, and nothing else."""
    code, printed = analysis("compare", ours, base)
    assert code == 2
    assert printed.count("\n") == 1
    return printed


def test_runs_on_other_images_are_refused(runs, tmp_path, analysis):
    _, (ours, _), (base, kept) = runs
    other = json.loads((tmp_path / "truth.json").read_text())
    gone = other["images"].pop()["id"]
    other["annotations"] = [a for a in other["annotations"] if a["image_id"] != gone]
    (tmp_path / "other.json").write_text(json.dumps(other))
    records.write(base, make(data={"digest": "e", "val": str(tmp_path / "other.json")}))
    rest = [r for r in kept if r["image_id"] != gone]
    (base / "coco_instances_results.json").write_text(json.dumps(rest))
    for table in (compare.ap_table, compare.categories, compare.images):
        with pytest.raises(UserError, match="evaluated on different images or objects") as caught:
            table(ours, base)
        assert f"{ours} and {base}: " in str(caught.value)
    assert f"{ours} and {base}: runs were evaluated" in refused(analysis, ours, base)


def test_boxes_against_masks_are_refused(runs, analysis):
    _, (ours, _), (base, _) = runs
    for folder, missing in ((ours, "mask"), (base, "box")):
        record = records.read(folder / records.RECORD)
        records.write(folder, dataclasses.replace(record, **{missing: {}}))
    assert f"{ours} and {base} have no AP of the same kind" in refused(analysis, ours, base)


def test_a_folder_without_run_is_refused(runs, tmp_path, analysis):
    _, (ours, _), _ = runs
    for pair in ((ours, tmp_path), (tmp_path, ours)):  # tmp_path is as a study's: runs are in it
        assert f"no finished run in {tmp_path}: give the folder" in refused(analysis, *pair)
