"""Detections scored without a run, as pycocotools and lvis score them; AP by category."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from analysis import categories, compare, results
from analysis.score import Scored
from experiments.data.mini import lvis as mini_lvis
from experiments.errors import UserError
from experiments.evaluation.evaluate import lvis_figures
from tests.conftest import write_set
from tests.experiments.evaluation.test_matches import pycocotools, random_set


@pytest.fixture
def files(tmp_path):
    """Truth, and detections of two detectors, the second with a sixth of the first's."""
    truth, found = random_set(3, images=40)
    for number, image in enumerate(truth["images"]):
        image["file_name"] = f"{number}.png"
    listed = {image["id"] for image in truth["images"]}
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in listed]
    # Masks of a random set are not their boxes' and have gaps: none of that is an error.
    paths = [tmp_path / name for name in ("truth.json", "one.json", "other.json")]
    for path, content in zip(paths, (truth, found, found[::6]), strict=True):
        path.write_text(json.dumps(content))
    return truth, found, paths


def test_figures_of_one_file_are_pycocotools(files):
    truth, found, (path, one, _) = files
    scored = Scored(path, [one])
    assert (scored.rules, list(scored.runs)) == ("coco", ["box", "mask"])
    for kind in scored.runs:
        table = scored.figures(kind)
        expected = 100 * pycocotools(truth, found, kind).stats
        assert table["value"].tolist() == pytest.approx(expected.tolist(), abs=1e-9)
        first = table.iloc[0]
        assert first.low < first.value < first.high
        assert table["low"].notna().tolist() == [True] * 6 + [False] * 6


def test_of_two_files_the_difference_is_paired(files):
    truth, found, (path, one, other) = files
    scored = Scored(path, [one, other])
    table = scored.figures("box").set_index("figure")
    ours, base = (100 * pycocotools(truth, f, "box").stats for f in (found, found[::6]))
    assert table["difference"].tolist() == pytest.approx((ours - base).tolist(), abs=1e-9)
    row = table.loc["AP"]
    assert row.low < row.difference < row.high
    assert row.verdict == "better"
    alone = [Scored(path, [p]).figures("box").set_index("figure").loc["AP"] for p in (one, other)]
    unpaired = np.hypot(*(r.high - r.low for r in alone))
    assert row.high - row.low < unpaired
    same = Scored(path, [one, one]).figures("box").set_index("figure")
    assert (same["difference"].dropna() == 0).all()
    assert same.loc["AP"].verdict == "equal within ±0.5"


def test_ap_of_a_category_is_that_of_a_set_of_it_alone(files):
    truth, found, (path, one, other) = files
    table = Scored(path, [one]).categories("box").set_index("category")
    assert len(table) == 3  # of two there is no object
    for name, row in table.iterrows():
        number = int(name)
        alone = dict(truth, categories=[c for c in truth["categories"] if c["id"] == number])
        mine = [r for r in found if r["category_id"] == number]
        expected = 100 * pycocotools(alone, mine, "box").stats[:3]
        assert row[["AP", "AP50", "AP75"]].tolist() == pytest.approx(expected.tolist(), abs=1e-9)
        assert row.low < row.AP < row.high
    pair = Scored(path, [one, other]).categories("box").set_index("category")
    assert (pair["ours"] == table["AP"]).all()
    assert np.allclose(pair["difference"], pair["ours"] - pair["base"])


def test_lvis_is_known_by_its_images(tmp_path):
    path = write_set(tmp_path, "val", 10)
    coco = json.loads(path.read_text()) | dict(info={})
    lvis = mini_lvis.federate(coco, "val")
    counted = mini_lvis.categories(coco, lvis)
    truth = tmp_path / "lvis.json"
    truth.write_text(json.dumps(lvis | dict(categories=counted)))
    found = tmp_path / "found.json"
    keys = ("image_id", "category_id", "bbox")
    results = [
        {k: a[k] for k in keys} | dict(score=1 - i / 1000)
        for i, a in enumerate(lvis["annotations"])
        if i % 3
    ]
    found.write_text(json.dumps(results))
    scored = Scored(truth, [found])
    assert (scored.rules, list(scored.runs)) == ("lvis", ["box"])
    table = scored.figures("box").set_index("figure")["value"]
    expected = {f: np.nan if v is None else v for f, v in lvis_figures(truth, found, "box").items()}
    assert table.to_dict() == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_boxes_alone_have_no_masks(files):
    truth, _, (path, one, _) = files
    for annotation in truth["annotations"]:
        del annotation["segmentation"]
    path.write_text(json.dumps(truth))
    assert list(Scored(path, [one]).runs) == ["box"]


def test_what_cannot_be_scored_is_one_line(files, tmp_path):
    truth, found, (path, one, other) = files
    other.write_text(json.dumps([{k: v for k, v in r.items() if k != "bbox"} for r in found]))
    boxes = tmp_path / "boxes.json"
    boxes.write_text(
        json.dumps([{k: v for k, v in r.items() if k != "segmentation"} for r in found])
    )
    empty = tmp_path / "empty.json"
    empty.write_text("[]")
    broken = tmp_path / "broken.json"
    truth["annotations"][0]["bbox"] = None
    broken.write_text(json.dumps(truth))
    for truth_file, files_of, message in (
        (path, [boxes, other], "share no kind"),
        (path, [empty], r"empty\.json holds no detection"),
        (path, [tmp_path / "gone.json"], r"cannot read .*gone\.json"),
        (tmp_path / "gone.json", [one], r"cannot read .*gone\.json"),
        (broken, [one], r"broken\.json: .*'bbox' that is not a list"),
        (one, [one], r"one\.json is no COCO detection set"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            Scored(truth_file, files_of)
        assert "\n" not in str(caught.value)


def test_the_command(files, analysis, tmp_path):
    _, _, (path, one, other) = files
    code, printed = analysis("score", path, one)
    assert code == 0
    assert "COCO's rules, 40 images, " in printed
    value = Scored(path, [one]).figures("box")["value"][0]
    assert re.search(rf"AP +{value:.2f} +\d+\.\d\d \.\. ", printed)
    assert "mask AP by category" in printed
    code, printed = analysis("score", path, one, other, "--top", 1)
    assert code == 0
    assert "verdict" in printed
    assert "and 2 more categories: --top 0" in printed
    assert sorted(p.name for p in tmp_path.glob("*.json")) == [
        "one.json",
        "other.json",
        "truth.json",
    ]
    assert not list(tmp_path.glob("*.npz"))  # nothing is left in the user's folder
    code, printed = analysis("score", path, tmp_path / "gone.json")
    assert code == 2
    assert printed.startswith("error: cannot read ")


# ---- In tables -----------------------------------------------------------------------------------


def test_categories_of_a_study(study):
    found = results.load(study)
    every = categories.of_study(found)
    assert list(every) == ["kind", "category", "objects", "variant", "ap", "seeds"]
    mine = every[(every["kind"] == "box") & (every["variant"] == "own")]
    # The mean over categories is the row's AP.
    table = found.table.set_index("variant")
    assert mine["ap"].mean() == pytest.approx(table.ap_box["own"])
    two = every[(every["kind"] == "mask") & (every["variant"] == "none")]
    assert (two["seeds"] == 2).all()
    assert two["ap"].mean() == pytest.approx(table.ap_mask["none"])
    moved = compare.categories(study / "own-0", study / "none-0").set_index("category")
    assert mine.set_index("category")["ap"].to_dict() == pytest.approx(moved["ours"].to_dict())
    texts = categories.texts(found)
    assert [title for title, _ in texts] == ["Box AP by category", "Mask AP by category"]
    assert [text.columns[2] for _, text in texts] == ["none", "none"]


def test_of_many_categories_those_that_differ_most_are_shown(study, monkeypatch):
    found = results.load(study)
    monkeypatch.setattr(categories, "SHOWN", 1)
    ((_, shown), _) = categories.texts(found)
    box = categories.of_study(found).query("kind == 'box'")
    wide = box.pivot_table("ap", "category", "variant")
    assert shown["category"].tolist() == [(wide.max(axis=1) - wide.min(axis=1)).idxmax()]


def test_the_study_command_writes_all_categories(study, analysis):
    code, printed = analysis("study", study, "--wide")
    assert code == 0
    assert "categories.csv" in printed
    assert len(pd.read_csv(study / "categories.csv")) == 2 * 3 * 3
    assert "Box AP by category" in (study / "table.md").read_text()
