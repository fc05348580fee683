"""Sets of the user's own: images of any size and depth, boxes alone, by the obvious command."""

import contextlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import get_detection_dataset_dicts
from detectron2.utils.events import EventStorage
from PIL import Image

from analysis import __main__ as analysis
from analysis import report, results, tables
from experiments import __main__ as main
from experiments import records, studies
from experiments.costs.detector_cost import detector_cost
from experiments.data import annotations, catalog
from experiments.data.stream import Stream, training_loader
from experiments.evaluation.evaluate import evaluate, set_num_classes
from experiments.jobs import runs
from experiments.recipe import config, identity, own_data
from experiments.records import progress
from tests.conftest import ROOT
from tests.faults.faulty import call_here

SIDE = 128  # of mini configs
# File, (height, width) as it is shown, and how many bits or what turn.
PHOTOS = {
    "phone.jpg": (1200, 900, "turned"),
    "wide.jpg": (300, 1600, ""),
    "small.png": (48, 60, ""),
    "microscope.tif": (700, 700, "16 bits"),
    "square.png": (128, 128, ""),
    "tall.jpg": (640, 80, ""),
}


def write(root: Path, split: str, masks: bool) -> str:
    """A set of photos, each with two bright rectangles; returns it as commands take it."""
    folder = root / split
    folder.mkdir(parents=True)
    coco = dict(images=[], annotations=[], categories=[dict(id=2, name="b"), dict(id=5, name="e")])
    random = np.random.default_rng(0)
    for number, (name, (height, width, how)) in enumerate(PHOTOS.items(), 1):
        pixels = random.integers(0, 90, (height, width), np.uint8)
        for k, category in enumerate((2, 5)):
            x, y = width // 8 + k * width // 2, height // 5
            w, h = width // 4, height // 2
            pixels[y : y + h, x : x + w] = 250 - 90 * k
            found = dict(
                id=len(coco["annotations"]) + 1, image_id=number, category_id=category, iscrowd=0,
                bbox=[x, y, w, h], area=w * h,
            )  # fmt: skip
            if masks:
                found["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            coco["annotations"].append(found)
        words = {}
        if how == "turned":
            exif = Image.Exif()
            exif[0x0112] = 6
            words, pixels = dict(exif=exif), np.rot90(pixels)
        deep = pixels.astype(np.uint16) << 8 if how == "16 bits" else pixels
        Image.fromarray(np.ascontiguousarray(deep)).save(folder / name, **words)
        coco["images"].append(dict(id=number, file_name=name, height=height, width=width))
    path = root / f"{split}.json"
    path.write_text(json.dumps(coco))
    return f"{path},{folder}"


@pytest.fixture(scope="module", params=[True, False], ids=["masks", "boxes only"])
def own(request, tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("own")
    return {name: write(root, name, request.param) for name in ("train", "val")}


def prepared(own, name):
    """Data, and the config of that name made theirs."""
    data = catalog.prepare("mini", own["train"], own["val"])
    cfg = own_data.fitted(config.load(ROOT / "configs" / f"{name}.py"), data)
    set_num_classes(cfg, len(data.categories))
    return data, cfg


@pytest.mark.parametrize(
    "name",
    [
        "mini/mask_rcnn_vit_mini",
        "mini/cascade_mask_rcnn_vit_mini",
        "mini/retinanet_vit_mini",
        "mini/mask_rcnn_swin_mini",
    ],
)
def test_any_size_trains_and_is_found_in_its_own_pixels(name, own, tmp_path):
    data, cfg = prepared(own, name)
    assert data.sides == (48, 1600)
    torch.manual_seed(0)
    model = instantiate(cfg.model).train()
    with contextlib.redirect_stdout(io.StringIO()):
        dicts = get_detection_dataset_dicts(data.train.register())
    stream = Stream(dicts, instantiate(cfg.dataloader.train.mapper), seed=0)
    batch = next(iter(training_loader(stream, start=0, batch_size=len(PHOTOS))))
    assert {Path(example["file_name"]).name for example in batch} == set(PHOTOS)
    for example in batch:
        assert max(example["image"].shape[1:]) == SIDE
        ratio = example["height"] / example["width"]
        assert np.divide(*example["image"].shape[1:]) == pytest.approx(ratio, rel=0.1)
        assert len(example["instances"]) == 2
        left, top, right, bottom = example["instances"].gt_boxes.tensor[0]
        assert (
            example["image"][0, int(top) + 1 : int(bottom), int(left) + 1 : int(right)].min() > 99
        )
    with EventStorage():
        losses = model(batch)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert ("loss_mask" in losses) == (data.has_masks and "retinanet" not in name)
    sum(losses.values()).backward()
    assert detector_cost(cfg.model).size == (SIDE, SIDE)

    for predictor in (m for m in model.modules() if hasattr(m, "test_score_thresh")):
        predictor.test_score_thresh = 0.0
    result = evaluate(model, cfg, data.val, tmp_path)
    assert bool(result.mask) == ("loss_mask" in losses)
    found = json.loads((tmp_path / "coco_instances_results.json").read_text())
    for number, (height, width, _) in enumerate(PHOTOS.values(), 1):
        boxes = np.array([d["bbox"] for d in found if d["image_id"] == number])
        assert len(boxes)
        assert (boxes[:, :2] + boxes[:, 2:] <= np.array([width, height]) + 0.01).all()
        if max(height, width) > 2 * SIDE:
            assert (boxes[:, :2] + boxes[:, 2:]).max() > SIDE


def test_a_larger_side_by_two_words(own):
    """As docs/own-data.md has it."""
    data = catalog.prepare("mini", own["train"], own["val"])
    words = {"dataloader.image_size": 256, "model.backbone.img_size": 256}
    (row,) = runs.rows(studies.find("count"), "mini", "", words, ["none"])
    cfg = own_data.fitted(row.cfg, data)
    entry = catalog.dicts(data.train)[0]
    assert max(instantiate(cfg.dataloader.train.mapper)(entry)["image"].shape[1:]) == 256
    assert detector_cost(cfg.model).size == (256, 256)
    assert "256 px on the longer side" in own_data.sizing(cfg, (48, 1600))
    for name in ("dataloader.image_size=256", "model.backbone.img_size=256"):
        assert name in (ROOT / "docs/own-data.md").read_text()


def test_a_set_of_the_scales_own_size_is_read_as_it_was(small_set):
    """Resizing 128 px to 128 px changes nothing; only upside down none is turned."""
    data, cfg = prepared(
        dict(train=small_set["dataset"], val=small_set["val"]), "mini/mask_rcnn_vit_mini"
    )
    before = config.load(ROOT / "configs/mini/mask_rcnn_vit_mini.py")
    entry = catalog.dicts(data.val)[0]
    ours, theirs = (instantiate(c.dataloader.test.mapper)(entry) for c in (cfg, before))
    assert torch.equal(ours["image"], theirs["image"])
    assert len(cfg.dataloader.train.mapper.augmentations) == 2
    assert own_data.sizing(cfg, data.sides) == "as they are"


@pytest.mark.parametrize(
    "name", ["coco/mask_rcnn_vit_b", "coco/retinanet_swin_b", "lvis/mask_rcnn_vit_l"]
)
def test_configs_that_resize_stay(name):
    cfg = config.load(ROOT / "configs" / f"{name}.py")
    before = identity.plain_config(cfg)
    own_data.take_any_size(cfg)
    assert identity.plain_config(cfg) == before
    side = cfg.dataloader.image_size
    jitter = f"large-scale jitter into a crop of {side} x {side} px"
    assert jitter in own_data.sizing(cfg, (48, 1600))


def call(command, *words) -> str:
    code, output = call_here(command, *words)
    assert code == 0, output
    return output


@pytest.mark.slow
def test_boxes_only_from_command_to_report(tmp_path):
    sets = [write(tmp_path, name, masks=False) for name in ("train", "val")]
    options = ["--dataset", sets[0], "--val", sets[1]]
    text = call(
        main, "run", "global-vs-conv", "--seeds", 1, "--variants", "none,shifted",
        *options, "--runs", tmp_path / "runs", "--overrides", "train.max_iter=2",
    )  # fmt: skip
    assert "images of 48 to 1600 px a side are resized to 128 px on the longer side" in text
    assert "no segmentation: boxes only" in text
    (folder,) = (path.parent for path in (tmp_path / "runs").rglob("study.json"))
    _, frame = records.load_study(folder)
    assert len(frame) == 2
    assert "ap_mask" not in frame
    assert set(map(tuple, frame["input_size"])) == {(SIDE, SIDE)}
    assert all("mask_head" not in c["model"]["roi_heads"] for c in frame["config"])

    (of_none,) = folder.glob("none-*")
    (of_shifted,) = folder.glob("shifted-*")
    found = of_none / "coco_instances_results.json"
    if json.loads(found.read_text()):  # two iterations may find nothing
        call(analysis, "add", folder, "--predictions", found, "--name", "added")
    call(analysis, "study", folder.with_name("global-vs-conv"), *options)
    table = (folder / "table.md").read_text()
    assert re.search(r"\| *box AP ", table)
    assert not re.search(r"\| *(diff )?mask", table)
    call(analysis, "report", folder, "--out", tmp_path / "report")
    report = (tmp_path / "report" / "report.md").read_text()
    assert not re.search(r"\| *(diff )?mask", report)
    assert "not drawn: Error" not in report
    compared = call(analysis, "compare", of_shifted, of_none)
    assert "mask" not in compared.replace(str(tmp_path), "")


def test_plan_and_sheet_of_boxes_only(tmp_path):
    train, val = (write(tmp_path, name, masks=False) for name in ("train", "val"))
    options = ["--dataset", train, "--val", val]
    text = call(main, "plan", "count", "--variants", "none", "--device", "h100", *options)
    assert "images of 48 to 1600 px a side are resized to 128 px on the longer side" in text
    assert "no segmentation: boxes only" in text
    assert f"epochs of {len(PHOTOS)} images" in text
    with_masks = call(main, "plan", "count", "--variants", "none", "--device", "h100")
    gmacs = [re.search(r"^none +\S+ +(\S+)", t, re.M)[1] for t in (text, with_masks)]
    assert float(gmacs[0]) < float(gmacs[1])
    call(main, "data", "mini", "--show", *options, "--runs", tmp_path / "runs")
    assert (tmp_path / "runs" / "mini" / "data.png").stat().st_size > 10_000


def test_each_set_has_a_folder_of_its_own(tmp_path):
    """Two sets under one study: neither its manifest nor its table is the other's."""
    for name in ("cells", "people"):
        for split in ("train", "val"):
            write(tmp_path / name, split, masks=False)
    folders = []
    for name in ("cells", "people"):
        root = tmp_path / name
        sets = [f"{root}/{split}.json,{root}/{split}" for split in ("train", "val")]
        data = catalog.prepare("mini", *sets)
        assert data.name.startswith(f"{name}-")
        assert data.name == annotations.set_name(*sets)
        study = studies.find("count")
        rows = runs.rows(study, "mini", "", {}, ["none"])
        planned = runs.plan(study, "count", "mini", rows, 1, data, tmp_path / "runs")
        (folder,) = {Path(run.folder).parent for run in planned}
        folder.mkdir(parents=True)
        runs.write_manifest(study, rows, planned, folder, "a command")
        folders.append(folder)
        assert folder.name == f"count@{data.name}"
    found = [results.load(folder) for folder in folders]
    titles = [tables.title(study) for study in found]
    assert "cells-" in titles[0]
    assert "people-" in titles[1]
    written = report.write(folders, tmp_path / "report")
    assert written[1].read_text().count("## count, mini scale") == 2
    assert "mini@cells-" in progress.of_study(tmp_path / "runs", "count")


def test_the_embedded_set_keeps_its_folder_and_its_runs_identity(tmp_path):
    """Runs that were made before there were other folders are found."""
    data = catalog.Data.of(*(catalog.parse_split(text) for text in own_splits(tmp_path)))
    study = studies.find("count")
    rows = runs.rows(study, "mini", "", {}, ["none"])
    (run,) = runs.plan(study, "count", "mini", rows, 1, data, tmp_path / "runs")
    assert Path(run.folder).parent == tmp_path / "runs" / "mini" / "count"
    cfg = rows[0].cfg
    cfg.train.seed = 0
    assert run.fingerprint == identity.fingerprint(cfg, data.digest)


def own_splits(root: Path) -> list[str]:
    return [write(root, split, masks=True) for split in ("train", "val")]
