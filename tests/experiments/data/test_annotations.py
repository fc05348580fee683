"""Annotation files as exporters write them are what they mean, for all that reads them."""

import codecs
import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import get_detection_dataset_dicts
from detectron2.data.datasets import load_coco_json

from experiments.data import annotations, catalog
from experiments.data.annotations import Split
from experiments.errors import UserError
from experiments.evaluation import evaluate, matches
from experiments.evaluation.average_precision import coco_figures
from experiments.evaluation.detections import read_results, run_lengths
from tests.conftest import ROOT, write_set

CASES = ROOT.parent / "shared" / "cases" / "cases.py"


def each(part, **makes):
    def change(coco):
        for entry in coco[part]:
            for key, make in makes.items():
                value = make(entry)
                entry[key] = value
                if value is ...:
                    del entry[key]

    return change


def as_float(part, *keys):
    return each(part, **{key: lambda e, key=key: float(e[key]) for key in keys})


def slivers(coco):
    for found in coco["annotations"]:
        if isinstance(found["segmentation"], list):
            found["segmentation"] += [[1, 2, 3, 4], []]


def flat(coco):
    for found in coco["annotations"]:
        if isinstance(found["segmentation"], list) and len(found["segmentation"]) == 1:
            found["segmentation"] = found["segmentation"][0]


# What means the same as the plain set.
TWINS = {
    "ids of images as floats": as_float("images", "id", "width", "height"),
    "annotations as floats": as_float("annotations", "id", "image_id", "category_id", "iscrowd"),
    "categories as floats": as_float("categories", "id"),
    "an annotation id 0": each("annotations", id=lambda a: a["id"] - 1),
    "area null": each("annotations", area=lambda a: None),
    "no area": each("annotations", area=lambda a: ...),
    "area 0": each("annotations", area=lambda a: 0),
    "area NaN": each("annotations", area=lambda a: float("nan")),
    "iscrowd null": each("annotations", iscrowd=lambda a: a["iscrowd"] or None),
    "no iscrowd": each("annotations", iscrowd=lambda a: a["iscrowd"] or ...),
    "iscrowd true": each("annotations", iscrowd=lambda a: bool(a["iscrowd"])),
    "slivers": slivers,
    "flat polygons": flat,
    "info null": lambda coco: coco.update(info=None, licenses=None),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> dict[str, Split]:
    """Areas are those of the polygons, as exporters have it."""
    root = tmp_path_factory.mktemp("plain")
    splits = {}
    for name, count in (("train", 6), ("val", 4)):
        path = write_set(root, name, count)
        coco = json.loads(path.read_text())
        each("annotations", area=lambda a: annotations._area(a))(coco)
        path.write_text(json.dumps(coco))
        splits[name] = Split(str(path), str(root / name))
    return splits


def written(plain, root, change, encode=lambda text: text.encode()) -> dict[str, Split]:
    splits = {}
    for name, split in plain.items():
        coco = json.loads(Path(split.json_file).read_text())
        change(coco)
        path = root / f"{name}.json"
        path.write_bytes(encode(json.dumps(coco)))
        splits[name] = Split(str(path), split.image_root)
    return splits


def detections(split: Split) -> list[dict]:
    """Every second object of the plain set found, and each moved a little."""
    coco = json.loads(Path(split.json_file).read_text())
    sizes = {image["id"]: [image["height"], image["width"]] for image in coco["images"]}
    found = []
    for i, a in enumerate(coco["annotations"]):
        if a["iscrowd"] or i % 3 == 2:
            continue
        rle = run_lengths(a, sizes[a["image_id"]])
        rle = dict(rle, counts=rle["counts"].decode())
        x, y, w, h = a["bbox"]
        found.append(
            dict(
                image_id=a["image_id"],
                category_id=a["category_id"],
                bbox=[x + i % 4, y, w, h],
                segmentation=rle,
                score=1 - i / 1000,
            )
        )
    return found


def figures(split: Split, found: Path) -> list[dict]:
    """Ours, and the reference's."""
    of = [evaluate.figures, evaluate.pycocotools_figures]
    words = [("coco",), ()]
    truth = Path(split.json_file)
    return [f(truth, found, k, *w) for f, w in zip(of, words, strict=True) for k in matches.KINDS]


def trained_on(split: Split) -> list[dict]:
    cfg = LazyConfig.load(str(ROOT / "configs/mini/mask_rcnn_vit_mini.py"))
    mapper = instantiate(cfg.dataloader.train.mapper)
    np.random.seed(0)
    return [mapper(entry) for entry in get_detection_dataset_dicts(split.register())]


def check_same_training(one: Split, other: Split) -> None:
    for ours, theirs in zip(trained_on(one), trained_on(other), strict=True):
        assert torch.equal(ours["image"], theirs["image"])
        fields = [example["instances"].get_fields() for example in (ours, theirs)]
        assert torch.equal(*(f["gt_boxes"].tensor for f in fields))
        assert torch.equal(*(f["gt_classes"] for f in fields))


@pytest.mark.parametrize("case", TWINS)
def test_what_means_the_same_gives_the_same(case, plain, tmp_path):
    splits = written(plain, tmp_path, TWINS[case])
    data = catalog.Data.of(splits["train"], splits["val"])
    assert data.categories == catalog.Data.of(*plain.values()).categories
    found = tmp_path / "found.json"
    found.write_text(json.dumps(detections(plain["val"])))
    expected = figures(plain["val"], found)
    assert 30 < expected[0]["AP"] < 90
    for ours, theirs in zip(figures(splits["val"], found), expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-9)
    check_same_training(splits["train"], plain["train"])


@pytest.mark.parametrize("mark", [codecs.BOM_UTF8 + b"", b""])
def test_a_byte_order_mark(mark, plain, tmp_path):
    splits = written(plain, tmp_path, lambda coco: None, lambda text: mark + text.encode())
    assert catalog.Data.of(*splits.values()).images == (6, 4)
    check_same_training(splits["train"], plain["train"])
    found = tmp_path / "found.json"
    found.write_bytes(mark + json.dumps(detections(plain["val"])).encode())
    assert figures(splits["val"], found)[0]["AP"] > 30


def test_what_was_mended_is_other_data_and_is_said(plain, tmp_path):
    """Earlier commits trained and scored it as it was written."""
    whole = catalog.Data.of(*plain.values())
    assert not [note for note in whole.notes if "taken" in note]
    change = TWINS["annotations as floats"]
    data = catalog.Data.of(*written(plain, tmp_path, change).values())
    assert data.digest != whole.digest
    assert len(data.notes) == 2
    assert "x whole number as a float (category_id): taken as the whole number" in data.notes[0]


@pytest.mark.parametrize("nothing", [None, [], [[]], ""])
def test_a_segmentation_of_nothing_is_none_and_is_said(nothing, plain, tmp_path):
    """On all objects: a set of boxes only, and not the data that it was written as."""
    change = each("annotations", segmentation=lambda _: nothing)
    data = catalog.Data.of(*written(plain, tmp_path, change).values())
    assert not data.has_masks
    assert data.digest != catalog.Data.of(*plain.values()).digest
    assert len(data.notes) == 2
    assert all("x empty segmentation: taken as none" in note for note in data.notes)


def test_our_dicts_are_detectron2s(plain):
    """Of a set that needs no mending; ids in any order."""
    split = plain["train"]
    peers = load_coco_json(split.json_file, split.image_root, "a-name")
    ours = catalog.dicts(split)
    assert len(ours) == len(peers) == 6
    for mine, their in zip(ours, peers, strict=True):
        assert mine == their


def test_results_with_float_ids_are_taken(plain, tmp_path):
    results = detections(plain["val"])
    for result in results:
        result.update(image_id=float(result["image_id"]), category_id=float(result["category_id"]))
    path = tmp_path / "found.json"
    path.write_text(json.dumps(results))
    found = matches.compute(plain["val"].json_file, read_results(path))
    expected = matches.compute(plain["val"].json_file, detections(plain["val"]))
    assert coco_figures(found) == coco_figures(expected)


def test_a_match_to_the_id_0_counts(plain, tmp_path):
    """To pycocotools it is none: perfect predictions are below 100."""
    coco = json.loads(Path(plain["val"].json_file).read_text())
    each("annotations", id=lambda a: a["id"] - 1)(coco)
    found = [
        {k: a[k] for k in ("image_id", "category_id", "bbox")} | dict(score=1 - a["id"] / 1000)
        for a in coco["annotations"]
        if not a["iscrowd"]
    ]
    assert coco_figures(matches.compute(coco, found))["AP"] == pytest.approx(100)


REFUSED = {
    "has a 'category_id' that is not a whole number": ("annotations", "category_id", 1.5),
    "has a 'id' that is not a whole number": ("images", "id", 0.5),
    "'id' that is not a whole number": ("images", "id", 2**63),
    "has a 'height' that is not a number of pixels": ("images", "height", "128"),
    "has a 'iscrowd' that is not 0 or 1": ("annotations", "iscrowd", "0"),
    "has a 'area' that is not a number": ("annotations", "area", "9"),
    "all annotations are crowd regions": ("annotations", "iscrowd", 1),
    "a polygon of 4 numbers": ("annotations", "segmentation", [[1, 2, 3, 4]]),
    "segmentation is a list of numbers": ("annotations", "segmentation", [1, 2, 3, 4]),
    "a polygon is no list of finite": ("annotations", "segmentation", [[[1, 2], [3, 4]]]),
    "folders end in /, not in": ("images", "file_name", "a\\{}.png"),
}


@pytest.mark.parametrize("which", ["train", "val"])
@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_counted_is_refused(message, which, plain, tmp_path):
    part, key, value = REFUSED[message]

    def make(entry):
        return value.format(entry["id"]) if isinstance(value, str) else value

    change = each(part, **{key: make})
    splits = plain | {which: written(plain, tmp_path, change)[which]}
    with pytest.raises(UserError, match=message) as caught:
        catalog.Data.of(splits["train"], splits["val"])
    text = str(caught.value)
    assert text.startswith(f"{tmp_path}/{which}.json: ")
    assert "\n" not in text


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> Path:
    if not CASES.is_file():
        pytest.skip("no ../shared/cases/cases.py")
    root = tmp_path_factory.mktemp("cases")
    subprocess.run([sys.executable, CASES, root], check=True, capture_output=True)
    return root


def refused(splits: dict[str, Split]) -> str:
    try:
        catalog.Data.of(splits["train"], splits["val"])
    except UserError as error:
        return str(error)
    return ""


def test_public_reports_are_their_plain_twin_or_one_line(cases):
    """What others' reports tell of: the figures of the plain set, or refused before training."""
    names = sorted(path.name for path in cases.iterdir())
    assert len(names) >= 12
    taken = []
    for name in names:
        root = str(cases / name)
        splits = {s: Split(f"{root}/{s}.json", f"{root}/images") for s in ("train", "val")}
        if refusal := refused(splits):
            assert "\n" not in refusal, name
            assert refusal.startswith(root), name
            continue
        taken.append(name)
        found = matches.compute(
            splits["val"].json_file, read_results(cases / name / "perfect.json")
        )
        assert coco_figures(found)["AP"] == pytest.approx(100), name
        if name != "category_gap":
            plain = Split(str(cases / "plain/train.json"), str(cases / name / "images"))
            ours, theirs = (
                [copy.deepcopy(e) for e in catalog.dicts(s)] for s in (splits["train"], plain)
            )
            for entry in (a for part in (*ours, *theirs) for a in part["annotations"]):
                entry.pop("segmentation", None)  # boxes alone may be all there is
            assert ours == theirs, name
    assert {"plain", "annotation_id_0", "iscrowd_null", "float_category", "no_area"} <= set(taken)
