"""Results of other detectors as rows of a study."""

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from analysis import compare, foreign, plots, prediction_sheet, provenance, report, results, tables
from experiments import records
from experiments.errors import UserError
from tests.experiments.evaluation.test_matches import pycocotools, random_set


@pytest.fixture
def predictions(tmp_path):
    """A file of detections on the study's set."""
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(random_set(3, images=40)[1][::5]))
    return path


def test_a_foreign_result_enters_the_table(study, predictions):
    folder = foreign.add(study, predictions, "their detector", macs=1.3e9, params=2e6)
    truth, found = random_set(3, images=40)
    rows = results.load(study).table.set_index("variant")
    assert rows.index.tolist() == ["none", "global", "own", "their detector"]
    row = rows.loc["their detector"]
    for kind in ("box", "mask"):
        theirs = pycocotools(truth, found[::5], kind).stats[0] * 100
        assert row[f"ap_{kind}"] == pytest.approx(theirs, abs=1e-9)
        assert row[f"ap_{kind}_diff_low"] < row[f"ap_{kind}_diff"] < row[f"ap_{kind}_diff_high"]
    assert (row.macs, row.params, row.seeds) == (1_300_000_000, 2_000_000, 1)
    # The base's mean over seeds, as no seed of ours is the other's.
    assert row.ap_box_diff == pytest.approx(row.ap_box - rows.ap_box["none"])
    assert json.loads((folder / "predictions.json").read_text()) == found[::5]


def test_it_enters_text_plots_and_comparisons(study, predictions, tmp_path):
    folder = foreign.add(study, predictions, "their detector", macs=1.3e9)
    found = results.load(study)
    assert "their detector is a foreign result: how it was trained is not known" in found.notes
    for form in ("md", "latex", "html", "text"):
        assert "their detector" in tables.whole(found, form)
    written = plots.ap_vs_macs(found, tmp_path / "plot")
    assert any("their detector" in p.read_text() for p in written if p.suffix == ".svg")
    table = compare.ap_table(study / "own-0", folder).set_index(["kind", "figure"])
    assert table.verdict["box", "AP"] == "better"
    costs = compare.cost_table(
        *(records.read(path / records.RECORD) for path in (study / "own-0", folder))
    ).set_index("cost")
    assert costs.ratio["GMACs"] == pytest.approx(1.4 / 1.3)
    assert costs.loc[["params M", "train s"]].base.isna().all()


def test_boxes_alone(study, predictions):
    found = [{k: v for k, v in r.items() if k != "segmentation"} for r in random_set(3, 40)[1]]
    predictions.write_text(json.dumps(found))
    foreign.add(study, predictions, "boxes")
    row = results.load(study).table.set_index("variant").loc["boxes"]
    assert row.ap_box > 0
    assert row[["ap_mask", "ap_mask_diff", "macs"]].isna().all()


def test_masks_alone(study, predictions, tmp_path, monkeypatch):
    """COCO's own format of segmentation: the sheet of predictions, of boxes, leaves it out."""
    record = records.read(study / "none-0" / records.RECORD)
    truth = json.loads(Path(record.data["val"]).read_text())
    truth["images"] = [image | {"file_name": "one.png"} for image in truth["images"]]
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    Image.new("RGB", (160, 160), "green").save(tmp_path / "one.png")
    for run in study.glob("*/record.json"):
        record = records.read(run)
        test = dict(dataset=f"{path},{tmp_path}")
        config = {**record.config, "dataloader": dict(test=test)}
        data = {**record.data, "val": str(path)}
        records.write(run.parent, dataclasses.replace(record, config=config, data=data))
    found = [{k: v for k, v in r.items() if k != "bbox"} for r in random_set(3, 40)[1]]
    predictions.write_text(json.dumps(found))
    folder = foreign.add(study, predictions, "masks")
    row = results.load(study).table.set_index("variant").loc["masks"]
    assert row.ap_mask > 0
    assert row[["ap_box", "ap_box_diff"]].isna().all()

    pictures = {k: [p for p in v if "sheet" in p.name] for k, v in report.PICTURES.items()}
    assert sum(map(len, pictures.values())) == 1
    monkeypatch.setattr(report, "PICTURES", pictures)
    report.write([study], tmp_path / "report")
    (sheet,) = (tmp_path / "report").rglob("*sheet*.csv")
    assert set(pd.read_csv(sheet)["variant"]) == {"none", "global", "own"}
    for run in study.glob("*/record.json"):
        if run.parent != folder:
            records.write(run.parent, dataclasses.replace(records.read(run), box={}))
    assert prediction_sheet.picture(results.load(study), tmp_path / "sheet") == []


def test_the_same_name_again_takes_its_place(study, predictions):
    foreign.add(study, predictions, "x")
    predictions.write_text(json.dumps(random_set(3, images=40)[1]))
    foreign.add(study, predictions, "x")
    table = results.load(study).table.set_index("variant")
    assert table.ap_box["x"] == pytest.approx(table.ap_box["own"])
    assert [path.name for path in (study / "foreign").iterdir()] == ["x"]


def of_another_image(found):
    found[2]["image_id"] = 10**6


def beyond_one(found):
    found[2]["score"] = 1.5


def without_shapes(found):
    for entry in found:
        del entry["bbox"], entry["segmentation"]


def broken(counts):
    return lambda found: found[2]["segmentation"].update(counts=counts)


WRONG = {
    "has image 1000000 at entry 2, which its ground truth has not": of_another_image,
    "has score 1.5 at entry 2": beyond_one,
    "holds no detection": list.clear,
    "no 'image_id' at entry 0": lambda found: found[0].clear(),
    "no 'bbox' at entry 0": lambda found: found[0].pop("bbox"),
    "no 'segmentation' at entry 2": lambda found: found[2].pop("segmentation"),
    "neither bbox nor segmentation at any entry": without_shapes,
    "None at entry 2: it is no detection": lambda found: found.__setitem__(2, None),
    "mask at entry 2 whose run lengths are broken": broken("@@@@zzz"),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_refused_leaves_nothing(study, predictions, message):
    foreign.add(study, predictions, "x")
    before = results.load(study).table
    found = random_set(3, images=40)[1][::5]
    WRONG[message](found)
    predictions.write_text(json.dumps(found))
    with pytest.raises(UserError, match=message) as caught:
        foreign.add(study, predictions, "x")
    assert str(predictions) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert results.load(study).table.equals(before)
    assert [path.name for path in (study / "foreign").iterdir()] == ["x"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "has a row 'none' of its own"),
        ("a/b", "cannot name a folder"),
        ("", "cannot name"),
        ("a\nb", r"--name 'a\\nb' cannot be printed"),
    ],
)
def test_names(study, predictions, name, message):
    with pytest.raises(UserError, match=message):
        foreign.add(study, predictions, name)


@pytest.mark.parametrize("option", ["macs", "params"])
@pytest.mark.parametrize("value", ["nan", "inf", "-1", "0"])
def test_costs_that_are_none(study, predictions, analysis, option, value):
    words = ("add", study, "--predictions", predictions, "--name", "x")
    code, printed = analysis(*words, f"--{option}={value}")
    assert code == 2
    assert printed.startswith(f"error: --{option} {float(value)} must be a finite number above 0")
    assert printed.count("\n") == 1
    assert not (study / "foreign").exists()


def test_nothing_to_score_it_on(study, predictions):
    for path in study.glob("*/record.json"):
        path.unlink()
    with pytest.raises(UserError, match=r"no run of .* is finished"):
        foreign.add(study, predictions, "x")


def test_the_command(study, predictions, analysis):
    words = ("add", study, "--predictions", predictions, "--name", "x", "--macs", "1e9")
    code, printed = analysis(*words)
    assert code == 0
    assert f"added: {study}/foreign/x" in printed
    assert results.load(study).table.set_index("variant").macs["x"] == 1_000_000_000
    predictions.unlink()
    code, printed = analysis(*words)
    assert code == 2
    assert printed.startswith(f"error: cannot read {predictions}")


def test_what_was_scored_on_another_set_is_left_out_and_named(study, predictions):
    folder = foreign.add(study, predictions, "x")
    record = records.read(folder / records.RECORD)
    truth = json.loads(Path(record.data["val"]).read_text())
    truth["annotations"] = truth["annotations"][:-5]
    other = study.parent / "other.json"
    other.write_text(json.dumps(truth))
    changed = dataclasses.replace(record, data={**record.data, "val": str(other)})
    records.write(folder, changed)
    found = results.load(study)
    assert found.table["variant"].tolist() == ["none", "global", "own"]
    assert found.notes[0] == (
        "x was scored on other images or objects than the runs and is left out: add it again, or "
        f"remove {folder}"
    )


def test_results_do_not_keep_what_their_command_does_not_make(study, predictions):
    foreign.add(study, predictions, "x")
    with pytest.raises(UserError, match="it has foreign results"):
        provenance.check_publishable(results.load(study))
