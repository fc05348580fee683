"""Odd but legal images and annotations are trained on; illegal ones are one line."""

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
from pycocotools import mask as masks
from rich.console import Console

from experiments.data import catalog
from experiments.data.check import check_data
from experiments.data.stream import Stream, training_loader
from experiments.errors import UserError
from experiments.evaluation.evaluate import set_num_classes
from experiments.recipe.config import load as load_config
from tests.conftest import ROOT, write_set

SIDE = 128  # of the training crop
_ORIENTATION = 0x0112  # EXIF's tag; 6: to be turned by a quarter


def noise(height, width, channels=3, dtype=np.uint8):
    shape = (height, width, channels) if channels > 1 else (height, width)
    top = np.iinfo(dtype).max
    return np.random.RandomState(0).randint(0, top, shape).astype(dtype)


def save_turned(path):
    exif = Image.Exif()
    exif[_ORIENTATION] = 6
    Image.fromarray(noise(60, 90)).save(path, exif=exif)


def save_palette(path):
    Image.fromarray(noise(70, 50)).quantize(16).save(path, transparency=3)


# File, its size as it is shown (height, width), and how it is made.
IMAGES = {
    "1x1.png": (1, 1, lambda p: Image.fromarray(noise(1, 1)).save(p)),
    "1x200.png": (1, 200, lambda p: Image.fromarray(noise(1, 200)).save(p)),
    "grey.jpg": (80, 60, lambda p: Image.fromarray(noise(80, 60, 1)).save(p)),
    "cmyk.jpg": (80, 60, lambda p: Image.fromarray(noise(80, 60)).convert("CMYK").save(p)),
    "16-bit.png": (80, 60, lambda p: Image.fromarray(noise(80, 60, 1, np.uint16)).save(p)),
    "alpha.png": (80, 60, lambda p: Image.fromarray(noise(80, 60, 4)).save(p)),
    "palette.png": (70, 50, save_palette),
    "turned.jpg": (90, 60, save_turned),
    "large.jpg": (2500, 3000, lambda p: Image.fromarray(noise(2500, 3000)).save(p, quality=30)),
}
HUGE = {"huge.jpg": (8000, 10000, lambda p: Image.new("RGB", (10000, 8000), "tan").save(p))}


def odd_annotations(height, width):
    """x, y, width, height of a box; its mask is the same."""
    return [
        [0, 0, width, height],
        [width / 4, height / 4, width / 2, height / 2],
        [width / 2, height / 2, width, height],  # partly outside
        [-width / 4, -height / 4, width / 2, height / 2],
        [width / 3, height / 3, 0, height / 2],  # without area
        [width / 3, height / 3, 0, 0],
    ]


def write_odd(root: Path, files: dict, run_lengths: bool) -> catalog.Split:
    folder = root / "odd"
    folder.mkdir(parents=True)
    coco = dict(images=[], annotations=[], categories=[dict(id=7, name="a"), dict(id=3, name="b")])

    def add(image, box, crowd=0, segmentation=None):
        x, y, w, h = box
        coco["annotations"].append(
            dict(
                id=len(coco["annotations"]) + 1,
                image_id=image["id"],
                category_id=7 if len(coco["annotations"]) % 2 else 3,
                iscrowd=crowd,
                bbox=box,
                area=w * h,
                segmentation=segmentation or [[x, y, x + w, y, x + w, y + h, x, y + h]],
            )
        )

    def whole(image):
        pixels = np.ones((image["height"], image["width"]), np.uint8, order="F")
        rle = masks.encode(pixels)
        return dict(size=rle["size"], counts=rle["counts"].decode())

    for name, (height, width, save) in files.items():
        save(folder / name)
        image = dict(id=len(coco["images"]) + 1, file_name=name, height=height, width=width)
        coco["images"].append(image)
        for box in odd_annotations(height, width):
            add(image, box)
        add(image, [0, 0, width, height], crowd=1, segmentation=whole(image))
        if run_lengths:
            add(image, [0, 0, width, height], segmentation=whole(image))
    for name, crowd in (("empty.png", None), ("crowds.png", 1)):
        Image.fromarray(noise(40, 40)).save(folder / name)
        image = dict(id=len(coco["images"]) + 1, file_name=name, height=40, width=40)
        coco["images"].append(image)
        if crowd:
            add(image, [0, 0, 40, 40], crowd=1, segmentation=whole(image))
    path = root / "odd.json"
    path.write_text(json.dumps(coco))
    return catalog.Split(str(path), str(folder))


def config(name="mini/mask_rcnn_vit_mini"):
    """A mini detector, with the large-scale jitter of the coco recipe at SIDE pixels."""
    cfg = load_config(ROOT / "configs" / f"{name}.py")
    jitter = load_config(ROOT / "configs/coco/mask_rcnn_vit_b.py")
    jitter.dataloader.image_size = SIDE
    augmentations = jitter.dataloader.train.mapper.augmentations
    cfg.dataloader.train.mapper.augmentations = [instantiate(a) for a in augmentations]
    set_num_classes(cfg, 2)
    return cfg


def batches(cfg, split, count, size):
    """As a run gets them."""
    data = catalog.Data.of(split, split)
    words = cfg.dataloader.train.mapper
    if data.has_rle and words.use_instance_mask:
        words.instance_mask_format = "bitmask"
    with contextlib.redirect_stdout(io.StringIO()):
        dicts = get_detection_dataset_dicts(split.register())
    loader = training_loader(Stream(dicts, instantiate(words), seed=0), start=0, batch_size=size)
    return [batch for batch, _ in zip(loader, range(count), strict=False)]


@pytest.mark.parametrize(
    ("name", "run_lengths"),
    [
        ("mini/mask_rcnn_vit_mini", False),
        ("mini/mask_rcnn_vit_mini", True),
        ("mini/retinanet_vit_mini", False),
    ],
)
def test_odd_but_legal_is_trained_on(name, run_lengths, tmp_path):
    cfg = config(name)
    split = write_odd(tmp_path, IMAGES, run_lengths)
    torch.manual_seed(0)
    model = instantiate(cfg.model).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    seen = set()
    for batch in batches(cfg, split, 4, len(IMAGES)):
        for image in batch:
            seen.add(Path(image["file_name"]).name)
            instances = image["instances"]
            fields = instances.get_fields()
            boxes = instances.gt_boxes.tensor
            assert len(boxes) > 0
            assert torch.isfinite(boxes).all()
            # Boxes of masks are cut at the crop, as detectron2 does it; an image may be smaller.
            height, width = (SIDE, SIDE) if "gt_masks" in fields else image["image"].shape[1:]
            assert (boxes >= 0).all()
            assert (boxes <= torch.tensor([width, height, width, height])).all()
            assert (boxes[:, 2:] > boxes[:, :2]).all()
        with EventStorage():
            losses = model(batch)
        assert all(torch.isfinite(loss) for loss in losses.values()), losses
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert seen == set(IMAGES)  # neither the empty one nor that with a crowd only
    assert all(torch.isfinite(weight).all() for weight in model.parameters())


def test_odd_but_legal_is_detected_on(tmp_path):
    """At test time, where nothing is left out."""
    cfg = config()
    split = write_odd(tmp_path, IMAGES, run_lengths=False)
    coco_test = load_config(ROOT / "configs/coco/mask_rcnn_vit_b.py").dataloader
    coco_test.image_size = SIDE
    mapper = instantiate(coco_test.test.mapper)
    with contextlib.redirect_stdout(io.StringIO()):
        dicts = get_detection_dataset_dicts(split.register(), filter_empty=False)
    assert len(dicts) == len(IMAGES) + 2
    torch.manual_seed(0)
    model = instantiate(cfg.model).eval()
    with torch.no_grad():
        for entry in dicts:
            image = mapper(entry)
            (found,) = model([image])
            boxes = found["instances"].pred_boxes.tensor
            assert found["instances"].image_size == (entry["height"], entry["width"])
            assert torch.isfinite(boxes).all()


@pytest.mark.slow
def test_a_huge_image_is_trained_on(tmp_path):
    split = write_odd(tmp_path, HUGE, run_lengths=False)
    cfg = config()
    (batch,) = batches(cfg, split, 1, 1)
    torch.manual_seed(0)
    with EventStorage():
        losses = instantiate(cfg.model).train()(batch)
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_check_data_has_no_error_on_what_training_survives(tmp_path):
    split = write_odd(tmp_path, IMAGES, run_lengths=True)
    console = Console(file=io.StringIO(), width=80)
    code = check_data({"train": split}, tmp_path / "defects.csv", console, 2)
    text = console.file.getvalue()
    assert code == 0, text
    assert "0 errors" in text
    for name in ("empty.png", "crowds.png"):
        assert f"({name})" in text
    for kind in ("box without area", "box partly outside"):
        assert f"note: {kind}, " in text


ILLEGAL = {
    "(gone.bmp): no file": lambda coco: coco["images"][0].update(file_name="gone.bmp"),
    "annotation 1: category 99 is not listed": lambda coco: coco["annotations"][0].update(
        category_id=99
    ),
    "another has the id 1 too, 0.bmp": lambda coco: coco["images"][1].update(id=1),
    "annotation 1: another has the id 1 too": lambda coco: coco["annotations"][1].update(id=1),
    "2 categories have the id 1": lambda coco: coco["categories"].append(dict(id=1, name="x")),
    "annotation 1: 'ignore' is no word of": lambda coco: coco["annotations"][0].update(ignore=1),
}


@pytest.mark.parametrize("message", ILLEGAL)
def test_illegal_is_one_line_at_the_start(message, tmp_path):
    path = write_set(tmp_path, "train", 3)
    coco = json.loads(path.read_text())
    ILLEGAL[message](coco)
    path.write_text(json.dumps(coco))
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        catalog.read_split(catalog.Split(str(path), str(tmp_path / "train")))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_in_training_is_one_line_with_its_file(workers, tmp_path):
    path = write_set(tmp_path, "train", 3)
    split = catalog.Split(str(path), str(tmp_path / "train"))
    name = split.register()
    with contextlib.redirect_stdout(io.StringIO()):
        dicts = get_detection_dataset_dicts(name)
    broken = tmp_path / "train" / "1.bmp"
    broken.write_bytes(broken.read_bytes()[:5000])
    loader = training_loader(
        Stream(dicts, instantiate(config().dataloader.train.mapper), 0), 0, 3, num_workers=workers
    )
    with pytest.raises(UserError) as caught:
        next(iter(loader))
    lines = [line for line in str(caught.value).splitlines() if str(broken) in line]
    assert lines
    assert "truncated" in lines[-1]
    if workers == 0:
        assert str(caught.value).count("\n") == 0
