"""Every defect of a data set is listed, and called an error where a run would stop or be wrong."""

import contextlib
import copy
import csv
import io
import json
import os
import random
import signal

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import get_detection_dataset_dicts
from PIL import Image
from pycocotools import mask as masks
from rich.console import Console

from experiments.data import catalog, images
from experiments.data.check import check_data
from experiments.data.kinds_of_defects import KINDS
from experiments.data.mini import lvis as mini_lvis
from experiments.errors import UserError
from experiments.evaluation.average_precision import coco_figures
from experiments.evaluation.matches import compute
from experiments.recipe.config import load as load_config
from tests.conftest import ROOT, write_set


def annotation(coco, image_id=1, crowd=0):
    """One of middle size: neither all of the image nor lost when its box moves by some pixels."""
    found = [a for a in coco["annotations"] if (a["image_id"], a["iscrowd"]) == (image_id, crowd)]
    return sorted(found, key=lambda a: a["area"])[len(found) // 2]


def change(**values):
    """Of an annotation of image 1."""
    return lambda coco, folder: annotation(coco).update(values)


def area_0(coco, folder):
    """Of a large object: a small one stays among the small ones."""
    found = [a for a in coco["annotations"] if a["image_id"] == 1 and not a["iscrowd"]]
    max(found, key=lambda a: a["area"])["area"] = 0


def run_lengths(pixels):
    rle = masks.encode(np.asfortranarray(pixels, np.uint8))
    return dict(size=rle["size"], counts=rle["counts"].decode())


def drop(coco, image_id, crowds_too):
    coco["annotations"] = [
        a
        for a in coco["annotations"]
        if a["image_id"] != image_id or (a["iscrowd"] and not crowds_too)
    ]


def crowds_only(coco, folder):
    drop(coco, 1, crowds_too=True)
    crowd = dict(annotation(coco, 2), id=900, image_id=1, iscrowd=1)
    coco["annotations"].append(crowd)


def cut(coco, folder):
    path = folder / "0.bmp"
    path.write_bytes(path.read_bytes()[:9000])


def copy_file(coco, folder):
    (folder / "1.bmp").write_bytes((folder / "0.bmp").read_bytes())


def twice(coco, folder):
    coco["images"][1]["file_name"] = "0.bmp"


def shifted(dx, dy, width=0, height=0):
    def shift(coco, folder):
        found = annotation(coco)
        found["bbox"] = [v + d for v, d in zip(found["bbox"], (dx, dy, width, height), strict=True)]

    return shift


def over_the_edge(coco, folder):
    found = annotation(coco)
    found["bbox"] = [100, 100, 48, 48]
    found["segmentation"] = [[100, 100, 148, 100, 148, 148, 100, 148]]


def moved_out(coco, folder):
    """Box and mask together."""
    found = annotation(coco)
    found["bbox"][0] += 500
    found["segmentation"] = [[200, 10, 220, 10, 220, 30]]


def corners(coco, folder):
    """The commonest mistake: x0, y0, x1, y1."""
    found = annotation(coco)
    found["bbox"] = [60, 60, 80, 80]
    found["segmentation"] = [[60, 60, 80, 60, 80, 80, 60, 80]]


BLANK = np.zeros((128, 128))
# Name of a case: kind of defect, and what makes it.
CASES = {
    "image without width": ("incomplete entry", lambda c, f: c["images"][0].pop("width")),
    "annotation without box": ("incomplete entry", lambda c, f: annotation(c).pop("bbox")),
    "annotation without area": ("no area", lambda c, f: annotation(c).pop("area")),
    "annotation without iscrowd": ("no iscrowd", lambda c, f: annotation(c).pop("iscrowd")),
    "category 1.0": (
        "whole number as a float",
        lambda c, f: annotation(c).update(category_id=float(annotation(c)["category_id"])),
    ),
    "category 1.5": ("incomplete entry", change(category_id=1.5)),
    "all crowds": ("no objects", lambda c, f: [a.update(iscrowd=1) for a in c["annotations"]]),
    "id is a text": ("incomplete entry", lambda c, f: c["images"][0].update(id="1")),
    "no object": ("incomplete entry", lambda c, f: c["annotations"].append(None)),
    "image id": ("duplicate image id", lambda c, f: c["images"][1].update(id=1)),
    "annotation id": ("duplicate annotation id", lambda c, f: c["annotations"][1].update(id=1)),
    "category id": (
        "duplicate category id",
        lambda c, f: c["categories"].append(dict(id=1, name="another")),
    ),
    "image": ("unknown image", change(image_id=99)),
    "category": ("unknown category", change(category_id=99)),
    "categories": ("different categories", lambda c, f: c["categories"][0].update(name="another")),
    "ignore": ("marked ignore", change(ignore=1)),
    "segmentation []": ("some without segmentation", change(segmentation=[])),
    "gone": ("missing image", lambda c, f: (f / "0.bmp").unlink()),
    "cut": ("unreadable image", cut),
    "empty file": ("unreadable image", lambda c, f: (f / "0.bmp").write_bytes(b"")),
    "size": ("wrong size", lambda c, f: c["images"][0].update(width=129)),
    "file twice": ("file listed twice", twice),
    "content twice": ("same image twice", copy_file),
    "NaN": ("broken box", change(bbox=[1, 2, float("nan"), 4])),
    "three numbers": ("broken box", change(bbox=[1, 2, 3])),
    "bbox of texts": ("broken box", change(bbox=["1", "2", "3", "4"])),
    "wide box": ("box far from its mask", shifted(-5, -5, 60, 60)),
    "edge": ("box partly outside", over_the_edge),
    "negative": ("box of negative size", change(bbox=[30, 30, -10, 10])),
    "zero": ("box without area", change(bbox=[30, 30, 0, 10])),
    "beside": ("box outside the image", moved_out),
    "x1 y1": ("box by its corners", corners),
    "shifted": ("box differs from its mask", shifted(3, 3)),
    "area 0": ("no area", area_0),
    "area NaN": ("no area", change(area=float("nan"))),
    "area 1e11": ("no area", change(area=1e11)),
    "sliver": (
        "polygon without area",
        lambda c, f: annotation(c)["segmentation"].append([1, 2, 3, 4]),
    ),
    "two corners": ("broken segmentation", change(segmentation=[[1, 2, 3, 4]])),
    "odd": ("broken segmentation", change(segmentation=[[1, 2, 3, 4, 5, 6, 7]])),
    "flat": (
        "polygon without a list",
        lambda c, f: annotation(c).update(segmentation=annotation(c)["segmentation"][0]),
    ),
    "flat box": ("broken segmentation", change(segmentation=[1, 2, 30, 4])),
    "far out": ("broken segmentation", change(segmentation=[[1, 2, 1e30, 4, 5, 60]])),
    "no numbers": ("broken segmentation", change(segmentation=[[1, 2, 3, 4, 5, None]])),
    "a text": ("broken segmentation", change(segmentation="mask")),
    "line": ("empty mask", change(segmentation=[[9, 9, 19, 9, 29, 9]])),
    "other size": ("broken segmentation", change(segmentation=run_lengths(np.ones((8, 8))))),
    "@@@@zzz": ("broken segmentation", change(segmentation=dict(size=[128, 128], counts="@@@@zz"))),
    "sum": ("broken segmentation", change(segmentation=dict(size=[128, 128], counts=[8, 9]))),
    "minus": (
        "broken segmentation",
        change(segmentation=dict(size=[128, 128], counts=[128**2 + 9, -9])),
    ),
    "blank": ("empty mask", change(segmentation=run_lengths(BLANK))),
    "unannotated": ("image without annotations", lambda c, f: drop(c, 1, crowds_too=True)),
    "crowds": ("image with crowds only", crowds_only),
    "no objects": (
        "category without objects",
        lambda c, f: c["categories"].append(dict(id=9, name="another")),
    ),
}
# What else some of them make.
ALSO = {
    "segmentation []": {"empty segmentation"},
    "annotation without box": {"category without objects"},
    "category 1.5": {"category without objects"},
    "image without width": {"unknown image", "category without objects"},
    "id is a text": {"unknown image", "category without objects"},
    "all crowds": {"image with crowds only", "category without objects"},
    "image id": {"unknown image", "category without objects"},
    "category id": {"different categories", "category without objects"},
    "x1 y1": {"box partly outside"},
    "wide box": {"box partly outside"},
    "unannotated": {"category without objects"},
    "crowds": {"category without objects"},
    "no objects": {"different categories"},
}


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("check-data")
    write_set(root, "train", 6)
    write_set(root, "val", 4)
    return root


def build(source, root, make=None, split="train"):
    """A copy of the set, one of its splits changed."""
    splits = {}
    for name in ("train", "val"):
        (root / name).mkdir(parents=True)
        for file in (source / name).iterdir():
            (root / name / file.name).write_bytes(file.read_bytes())
        coco = json.loads((source / f"{name}.json").read_text())
        if make and name == split:
            make(coco, root / name)
        (root / f"{name}.json").write_text(json.dumps(coco))
        splits[name] = catalog.Split(str(root / f"{name}.json"), str(root / name))
    return splits


def check(splits, root, jobs=1):
    """Exit code, lines of the CSV, and what is printed."""
    console = Console(file=io.StringIO(), width=80)
    code = check_data(splits, root / "defects.csv", console, jobs)
    with open(root / "defects.csv", newline="") as file:
        return code, list(csv.DictReader(file)), console.file.getvalue()


def test_a_whole_set_has_none(source, tmp_path):
    code, defects, text = check(build(source, tmp_path), tmp_path)
    assert (code, defects) == (0, [])
    assert "10 images in " in text
    assert "0 errors" in text


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("case", CASES)
def test_each_defect_is_found_and_no_other(case, split, source, tmp_path):
    kind, make = CASES[case]
    splits = build(source, tmp_path, make, split)
    code, defects, text = check(splits, tmp_path)
    (found,) = [defect for defect in defects if defect["kind"] == kind]
    assert {d["kind"] for d in defects} - {kind} <= ALSO.get(case, set())
    severity = KINDS[kind][split == "val"][0]
    if kind != "different categories":
        assert (found["split"], found["severity"]) == (split, severity)
    assert code == any(defect["severity"] == "error" for defect in defects)
    refusal = refused(splits)
    assert bool(refusal) == any(d["severity"] == "error" for d in of_files(defects))
    assert "\n" not in refusal
    assert not refusal or ".json: " in refusal
    if found["image_id"]:
        assert f" image {found['image_id']} ({found['file']})" in text
    assert found["what"] in text
    assert f"1 {kind}" in text


def of_files(defects):
    """Those that are in the annotation files, not in images."""
    of_images = ("unreadable image", "wrong size", "in train and val", "same image twice")
    return [defect for defect in defects if defect["kind"] not in of_images]


def refused(splits) -> str:
    """Why no run starts: one line that names a file; "" if one does."""
    try:
        catalog.Data.of(splits["train"], splits["val"])
    except UserError as error:
        return str(error)
    return ""


def trained(splits, data, config="coco/mask_rcnn_vit_b"):
    """What a detector is trained on: by detectron2's loader, filter and mapper."""
    cfg = load_config(ROOT / "configs" / f"{config}.py")
    cfg.dataloader.image_size = 128
    words = cfg.dataloader.train.mapper
    if data.has_rle and words.use_instance_mask:
        words.instance_mask_format = "bitmask"
    mapper = instantiate(words)
    with contextlib.redirect_stdout(io.StringIO()):
        dicts = get_detection_dataset_dicts(splits["train"].register())
    np.random.seed(0)
    return [mapper(entry)["instances"] for entry in dicts]


@pytest.mark.parametrize("case", CASES)
def test_training_does_what_is_said(case, source, tmp_path):
    kind, make = CASES[case]
    splits = build(source, tmp_path, make)
    severity, consequence = KINDS[kind][0]
    if consequence.startswith("no run starts"):
        with pytest.raises(UserError, match=r"train\.json"):
            catalog.Data.of(splits["train"], splits["val"])
        return
    if case == "no objects":  # in both, as a run needs it
        path = tmp_path / "val.json"
        coco = json.loads(path.read_text())
        make(coco, None)
        path.write_text(json.dumps(coco))
    data = catalog.Data.of(splits["train"], splits["val"])
    if consequence == "a run stops there":
        with pytest.raises(Exception, match=r"0\.bmp|truncated"):
            trained(splits, data)
        return
    if severity == "error":
        return
    objects = trained(splits, data)
    assert all(torch.isfinite(instances.gt_boxes.tensor).all() for instances in objects)
    whole = build(source, tmp_path / "whole")
    all_objects = trained(whole, catalog.Data.of(whole["train"], whole["val"]))
    lost = sum(map(len, all_objects)) - sum(map(len, objects))
    lost_images = len(all_objects) - len(objects)
    assert lost_images == (kind in ("image without annotations", "image with crowds only"))
    if not lost_images:
        assert lost == ("left out of training" in consequence)
    without_masks = trained(splits, data, "coco/retinanet_vit_b")
    lost = sum(map(len, all_objects)) - sum(map(len, without_masks))
    if not lost_images:
        assert lost == (kind == "box without area")


def detections(root):
    """Every object of the whole set's val, found."""
    coco = json.loads((root / "val.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in coco["images"]}
    found = []
    for number, a in enumerate(a for a in coco["annotations"] if not a["iscrowd"]):
        rle = masks.merge(masks.frPyObjects(a["segmentation"], *sizes[a["image_id"]]))
        rle["counts"] = rle["counts"].decode()
        keys = ("image_id", "category_id", "bbox")
        found.append({k: a[k] for k in keys} | dict(segmentation=rle, score=1 - number / 1000))
    return found


SCORED = [
    case
    for case, (kind, _) in CASES.items()
    if KINDS[kind][1][1].startswith(("taken", "left out", "an object", "evaluated"))
]


@pytest.mark.parametrize("which", ["box", "mask"])
@pytest.mark.parametrize("case", SCORED)
def test_evaluating_does_what_is_said(case, which, source, tmp_path):
    kind, make = CASES[case]
    splits = build(source, tmp_path, make, "val")
    whole = compute(source / "val.json", detections(source), which)
    scored = compute(splits["val"].json_file, detections(source), which)
    consequence = KINDS[kind][1][1]
    if consequence.startswith(("taken", "left out")):
        assert coco_figures(scored) == coco_figures(whole)
        assert np.array_equal(scored.objects, whole.objects)
    elif consequence.startswith("an object"):
        none = {"box without area": "box", "empty mask": "mask"}[kind]
        assert (coco_figures(scored)["AP"] < 99.9) == (which == none)


def test_defects_name_image_file_and_annotation(source, tmp_path):
    def make(coco, folder):
        crowds_only(coco, folder)
        annotation(coco, 3).update(id=77, bbox=[100, 100, 60, 20])
        (folder / "4.bmp").unlink()

    code, defects, text = check(build(source, tmp_path, make), tmp_path)
    assert code == 1
    folder = tmp_path / "train"
    assert f"  train image 5 (4.bmp): no file {folder}/4.bmp\n" in text
    assert "  train image 1 (0.bmp): 1 crowds\n" in text
    what = "box [100, 100, 60, 20], image of 128 x 128"
    assert f"  train image 3 (2.bmp), annotation 77: {what}\n" in text
    assert defects[0]["kind"] in KINDS
    partly = next(defect for defect in defects if defect["kind"] == "box partly outside")
    assert partly == dict(
        split="train", kind="box partly outside", image_id="3", file="2.bmp",
        annotation_id="77", what=what, severity="note",
    )  # fmt: skip
    assert text.index("note: ") < text.index("error: ")


def test_an_image_in_both_splits(source, tmp_path):
    splits = build(source, tmp_path)
    (tmp_path / "val/2.bmp").write_bytes((tmp_path / "train/1.bmp").read_bytes())
    code, (defect,), _ = check(splits, tmp_path)
    assert (code, defect["split"], defect["kind"]) == (1, "val", "in train and val")
    assert (defect["file"], defect["what"]) == ("2.bmp", "the same file as train image 2 (1.bmp)")


def test_one_split_alone_and_files_that_are_not_there(source, tmp_path):
    splits = build(source, tmp_path)
    assert check({"val": splits["val"]}, tmp_path)[0] == 0
    for wrong in ("", "[", "{}", '{"images": [], "annotations": [], "categories": []}'):
        (tmp_path / "val.json").write_text(wrong)
        with pytest.raises(UserError, match=r"val\.json"):
            check(splits, tmp_path)
    (tmp_path / "val.json").unlink()
    with pytest.raises(UserError, match=r"cannot read .*val\.json"):
        check(splits, tmp_path)


def test_processes_change_nothing(source, tmp_path):
    splits = build(source, tmp_path, cut)
    assert check(splits, tmp_path, jobs=3)[:2] == check(splits, tmp_path, jobs=1)[:2]


def test_a_process_that_is_killed(source, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "read", lambda path: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError, match="a process that reads images"):
        check(build(source, tmp_path), tmp_path)


def test_an_images_own_orientation_counts(source, tmp_path):
    def make(coco, folder):
        exif = Image.Exif()
        exif[0x0112] = 6  # a quarter turn
        for number, size in ((0, [30, 20]), (1, [20, 30])):
            Image.new("RGB", (20, 30)).save(
                folder / f"{number}.jpg", exif=exif, quality=50 + number
            )
            width, height = size
            coco["images"][number].update(file_name=f"{number}.jpg", width=width, height=height)
            drop(coco, number + 1, crowds_too=True)

    _, defects, _ = check(build(source, tmp_path, make), tmp_path)
    wrong = [defect["file"] for defect in defects if defect["kind"] == "wrong size"]
    assert wrong == ["1.jpg"]


def test_run_lengths_that_fit_are_no_defect(source, tmp_path):
    def make(coco, folder):
        for found in coco["annotations"]:
            if isinstance(found["segmentation"], list):
                rle = masks.merge(masks.frPyObjects(found["segmentation"], 128, 128))
                pixels = masks.decode(rle).T.ravel()
                found["segmentation"] = run_lengths(masks.decode(rle))
                if found["id"] % 2:
                    edges = np.flatnonzero(np.diff(pixels)) + 1
                    counts = np.diff([0, *edges, len(pixels)]).tolist()
                    found["segmentation"]["counts"] = [0] * int(pixels[0]) + counts

    assert check(build(source, tmp_path, make), tmp_path)[:2] == (0, [])


LVIS = {
    "LVIS numbers its categories": lambda c: c["categories"][0].update(id=40),
    "frequency": lambda c: c["categories"][0].update(frequency="x"),
    "neg_category_ids has [7]": lambda c: c["images"][0]["neg_category_ids"].append(7),
    "a polygon of 4 numbers": lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4]]),
    "no list of polygons": lambda c: c["annotations"][0].update(segmentation=dict(counts=[1])),
    "lacks 'not_exhaustive_category_ids'": lambda c: c["images"][0].pop(
        "not_exhaustive_category_ids"
    ),
}


def lvis(source, root):
    """The set in LVIS's format."""
    splits, federated = {}, {}
    for name in ("train", "val"):
        coco = json.loads((source / f"{name}.json").read_text()) | dict(info={})
        federated[name] = mini_lvis.federate(coco, name)
        counted = mini_lvis.categories(coco, federated["train"])
        (root / f"{name}.json").write_text(json.dumps(federated[name] | dict(categories=counted)))
        splits[name] = catalog.Split(str(root / f"{name}.json"), str(source), "lvis")
    return splits


def test_lvis(source, tmp_path):
    splits = lvis(source, tmp_path)
    code, defects, _ = check(splits, tmp_path)
    assert code == 0
    assert {d["kind"] for d in defects} <= {"image without annotations", "category without objects"}
    for message, make in LVIS.items():
        splits = lvis(source, tmp_path)
        coco = json.loads((tmp_path / "val.json").read_text())
        make(coco)
        (tmp_path / "val.json").write_text(json.dumps(coco))
        code, defects, _ = check(splits, tmp_path)
        assert code == 1
        (defect,) = [d for d in defects if message in d["what"]]
        assert (defect["split"], defect["severity"]) == ("val", "error")
        with pytest.raises(UserError):
            catalog.read_split(splits["val"])


JUNK = [
    None,
    -1,
    0,
    1e400,
    float("nan"),
    10**30,
    "",
    "\ud800",
    "\0",
    "a/b",
    [],
    [[]],
    {},
    True,
    [1],
]


def places(node, path=()):
    """Every place in a JSON value."""
    yield path
    if isinstance(node, dict | list):
        for key in node if isinstance(node, dict) else range(len(node)):
            yield from places(node[key], (*path, key))


def test_what_starts_is_no_error_and_gets_through_whatever_it_is(source, tmp_path):
    """A random value anywhere in the file: what a run refuses is an error of check-data and the
    other way round, and what it takes is trained on and scored without a crash."""
    splits = build(source, tmp_path)
    whole = json.loads((source / "val.json").read_text())
    anywhere = [place for place in places(whole) if 0 < len(place) < 6]  # few single corners
    draw = random.Random(0)
    refused = 0
    for _ in range(80):
        coco = copy.deepcopy(whole)
        *path, last = draw.choice(anywhere)
        node = coco
        for key in path:
            node = node[key]
        node[last] = draw.choice(JUNK)
        (tmp_path / "val.json").write_text(json.dumps(coco))
        try:
            _, defects, _ = check({"val": splits["val"]}, tmp_path, jobs=1)
            wrong = any(defect["severity"] == "error" for defect in of_files(defects))
        except UserError:
            wrong = True
        try:
            catalog.read_split(splits["val"])
        except UserError:
            refused += 1
            assert wrong, (path, last, node[last])
            continue
        assert not wrong, (path, last, node[last])
        assert catalog.dicts(splits["val"])
        found = detections(source)
        for which in ("box", "mask"):
            assert coco_figures(compute(splits["val"].json_file, found, which))["AP"] is not None
    assert 20 < refused < 79


def test_real_coco_has_no_errors(coco, tmp_path):
    root = coco / "coco"
    splits = {
        name: catalog.Split(
            str(root / f"annotations/instances_{name}2017.json"), str(root / f"{name}2017")
        )
        for name in ("train", "val")
    }
    if len(os.listdir(root / "train2017")) > 1000:
        splits.pop("train")
    code, defects, _ = check(splits, tmp_path, jobs=2)
    assert code == 0
    assert {defect["kind"] for defect in defects} <= {
        "image without annotations",
        "image with crowds only",
        "category without objects",
    }


def test_of_many_notes_some_are_shown_and_all_are_kept(source, tmp_path):
    def make(coco, folder):
        coco["categories"] += [dict(id=i, name=f"\ud800 {i}") for i in range(100, 130)]

    splits = build(source, tmp_path, make)
    code, defects, text = check({"train": splits["train"]}, tmp_path)
    assert (code, len(defects)) == (0, 30)
    assert text.count("  train: category ") == 3
    assert "  ... and 27 more, see " in text
    text.encode()


def test_one_cause_is_one_line_with_a_count(source, tmp_path):
    def make(coco, folder):
        for found in coco["annotations"]:
            del found["bbox"]
        coco["annotations"][0]["image_id"] = "1"

    splits = build(source, tmp_path, make)
    count = len(json.loads((tmp_path / "train.json").read_text())["annotations"])
    _, defects, text = check(splits, tmp_path)
    title = f"error: incomplete entry (annotation lacks 'bbox'), {count - 1} in train: no run"
    assert text.count("annotation at entry") == 3 + 1
    assert title in text
    assert len([d for d in defects if d["kind"] == "incomplete entry"]) == count
    with pytest.raises(UserError, match=f"; {count - 1} of another kind, make check-data lists"):
        catalog.read_split(splits["train"])
