"""The sheet of predictions: what is right, wrong and missed, which images, and small files."""

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from analysis import prediction_sheet
from analysis.results import Results
from experiments.errors import UserError


@pytest.fixture
def truth(small_set) -> dict:
    """10 images, a crowd in the fifth."""
    truth = json.loads(Path(small_set["val"].split(",")[0]).read_text())
    runs = [100 * 128, *[28, 100] * 28]
    crowd = dict(id=10**6, image_id=5, category_id=1, bbox=[100, 0, 28, 28], area=784, iscrowd=1)
    crowd["segmentation"] = dict(size=[128, 128], counts=runs)
    return dict(truth, annotations=[*truth["annotations"], crowd])


@pytest.fixture
def study(small_set, truth, tmp_path) -> Results:
    """One variant finds all, one gets the categories in images 5 and 7 wrong, one finds nothing in
    3 and 7; each finds more below the threshold, and in the crowd."""
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    val = f"{tmp_path / 'truth.json'},{small_set['val'].split(',')[1]}"
    objects = [a for a in truth["annotations"] if not a["iscrowd"]]
    crowds = [a for a in truth["annotations"] if a["iscrowd"]]

    def found(annotation: dict, score: float, category: int = 0) -> dict:
        keys = ("image_id", "category_id", "bbox", "segmentation")
        detection = {k: annotation[k] for k in keys} | {"score": score}
        return detection | ({"category_id": category} if category else {})

    def row(variant: str, seed: int, predictions: list[dict]) -> dict:
        predictions = predictions + [found(a, 0.4, 1 + a["category_id"] % 4) for a in objects]
        predictions += [found(a, 0.9) for a in crowds]
        folder = tmp_path / f"{variant}-{seed}"
        folder.mkdir()
        (folder / "found.json").write_text(json.dumps(predictions))
        return dict(
            variant=variant,
            seed=seed,
            path=str(folder / "record.json"),
            predictions="found.json",
            ap_box=10.0,
            data=dict(kind="coco", val=val.split(",")[0]),
            config=dict(dataloader=dict(test=dict(dataset=val))),
        )

    def confused(a: dict) -> dict:
        return found(a, 0.7, 1 + a["category_id"] % 4 if a["image_id"] in (5, 7) else 0)

    records = [
        row("blind", 1, [found(a, 0.8) for a in objects if a["image_id"] not in (3, 7)]),
        row("confused", 0, [confused(a) for a in objects]),
        row("whole", 1, []),
        row("whole", 0, [found(a, 0.9) for a in objects]),
    ]
    table = pd.DataFrame(dict(variant=["whole", "confused", "unfinished", "blind"]))
    manifest = dict(study="some-study")
    return Results(tmp_path, manifest, pd.DataFrame(records), table, 0.5, [])


def test_the_images_where_variants_differ_most(study, truth, tmp_path):
    written = prediction_sheet.picture(study, tmp_path / "sheet", images=3)
    assert [path.name for path in written] == ["sheet.png", "sheet.svg", "sheet.csv"]
    table = pd.read_csv(written[2])
    assert list(table) == ["image", "file_name", "variant", "right", "wrong", "missed"]
    assert set(table["image"]) == {3, 5, 7}
    assert list(table["variant"][:3]) == ["whole", "confused", "blind"]
    count = {
        i: sum(a["image_id"] == i and not a["iscrowd"] for a in truth["annotations"])
        for i in (3, 5, 7)
    }
    rows = table.set_index(["image", "variant"])[["right", "wrong", "missed"]]
    for image, number in count.items():
        nothing = (0, 0, number)
        assert tuple(rows.loc[image, "whole"]) == (number, 0, 0)
        wrong = image in (5, 7)
        assert tuple(rows.loc[image, "confused"]) == (
            (0, number, number) if wrong else (number, 0, 0)
        )
        assert tuple(rows.loc[image, "blind"]) == (nothing if image != 5 else (number, 0, 0))


def test_files_are_small_and_tell_more_when_hovered(study, tmp_path):
    png, svg, _ = prediction_sheet.picture(study, tmp_path / "sheet")
    assert png.stat().st_size < 300_000
    assert svg.stat().st_size < 700_000
    with Image.open(png) as image:
        assert image.width > 3 * 150
    text = svg.read_text()
    assert text.count("<image") == 1
    for title in ("right: ", "wrong: ", "missed: ", "object: ", "crowd: "):
        assert f"<title>{title}" in text
    assert "the 6 of 10 images on which variants differ most" in text


def test_the_same_results_make_the_same_files(study, tmp_path):
    first = prediction_sheet.picture(study, tmp_path / "sheet", images=2)
    content = [path.read_bytes() for path in first]
    again = prediction_sheet.picture(study, tmp_path / "sheet", images=2)
    assert [path.read_bytes() for path in again] == content


def test_of_one_variant_the_images_with_most_errors(study, tmp_path):
    records = study.records[study.records["variant"] == "confused"]
    alone = dataclasses.replace(study, records=records)
    written = prediction_sheet.picture(alone, tmp_path / "sheet", images=2)
    assert set(pd.read_csv(written[2])["image"]) == {5, 7}
    assert "the 2 of 10 images with most errors" in written[1].read_text()


def without_masks(folder: Path) -> None:
    for path in folder.glob("*/found.json"):
        found = json.loads(path.read_text())
        path.write_text(json.dumps([dict(p, segmentation=None) for p in found]))


def test_boxes_without_masks(study, tmp_path):
    without_masks(tmp_path)
    assert len(prediction_sheet.picture(study, tmp_path / "sheet", images=1)) == 3


def test_large_images_are_drawn_small(study, truth, tmp_path):
    large = tmp_path / "large"
    large.mkdir()
    for image in truth["images"]:
        Image.new("RGB", (640, 427), "green").save(large / image["file_name"])
    content = dict(truth, images=[dict(i, width=640, height=427) for i in truth["images"]])
    content["annotations"] = [dict(a, segmentation=None) for a in truth["annotations"]]
    val = tmp_path / "large.json"
    val.write_text(json.dumps(content))
    without_masks(tmp_path)
    study.records["data"] = [dict(kind="coco", val=str(val))] * len(study.records)
    config = dict(dataloader=dict(test=dict(dataset=f"{val},{large}")))
    study.records["config"] = [config] * len(study.records)
    png, _, _ = prediction_sheet.picture(study, tmp_path / "sheet", images=2)
    with Image.open(png) as image:
        assert image.width < 4 * 210 * 1.5 + 50
        assert image.height < 2 * 140 * 1.5 + 150


def test_nothing_to_draw(study, tmp_path):
    for records in (pd.DataFrame(), study.records.assign(data=[dict(kind="lvis")] * 4)):
        empty = dataclasses.replace(study, records=records)
        assert prediction_sheet.picture(empty, tmp_path / "sheet") == []


def test_images_that_are_not_there(study, tmp_path):
    (tmp_path / "empty").mkdir()
    val = study.records["data"][0]["val"]
    for config, message in (
        (dict(dataloader=dict(test=dict(dataset=f"{val},{tmp_path / 'empty'}"))), "empty/.*bmp"),
        ({}, "whole, confused, blind"),
    ):
        study.records["config"] = [config] * len(study.records)
        with pytest.raises(UserError, match=message) as caught:
            prediction_sheet.picture(study, tmp_path / "sheet")
        assert "\n" not in str(caught.value)


def test_predictions_that_are_not_there(study, tmp_path):
    (tmp_path / "blind-1" / "found.json").unlink()
    with pytest.raises(UserError, match=r"cannot read .*blind-1/found\.json"):
        prediction_sheet.picture(study, tmp_path / "sheet")
