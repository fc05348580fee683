"""Evaluation of a set of val2017's size, and resampling it: seconds and memory.

Objects and detections are drawn at random; each row is a process of its own. Seconds are from lists
in memory to figures, LVIS's from files; "wall" and "CPU" differ where a row uses two threads or the
machine is busy. The peak is the process's, with the set in it but for LVIS's detections.
"""

import contextlib
import io
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from pycocotools import mask as masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.console import Console
from tabulate import tabulate

from analysis import bootstrap
from experiments.evaluation import average_precision, matches

from . import page

SUITE = "evaluation"
KINDS = {"box": "bbox", "mask": "segm"}
IMAGES, OBJECTS, CATEGORIES, DETECTIONS = 5000, 36_000, 80, 100
LVIS_IMAGES, LVIS_OBJECTS, LVIS_DETECTIONS = 19_809, 244_707, 300  # v1's val
_BLOCK = 20  # images that LVIS's set is drawn and read by
_HEIGHT, _WIDTH = 480, 640
_ANGLES = np.linspace(0, 2 * np.pi, 24, endpoint=False)


def simulate(
    kind: str,
    images: int = IMAGES,
    seed: int = 0,
    objects: int = OBJECTS,
    detections: int = DETECTIONS,
) -> tuple[dict, list[dict]]:
    """A ground truth, and detections in each image, about half of them near an object.

    Args:
        objects: of `IMAGES` images.
        detections: of each image.
    """
    random = np.random.default_rng(seed)
    objects = images * objects // IMAGES
    image = np.sort(random.choice(images, objects, p=random.dirichlet(np.full(images, 0.7))))
    often = random.dirichlet(np.full(CATEGORIES, 0.3))
    of_image = random.choice(CATEGORIES, (images, 3), p=often)
    category = of_image[image, random.integers(3, size=objects)]
    size = np.exp(random.normal(4, 1, (objects, 2))).clip(4, 400)
    corner = random.random((objects, 2)) * ([_WIDTH, _HEIGHT] - size)
    boxes = np.concatenate([corner, size], 1)
    shapes = _shapes(kind, boxes, compress=False)
    truth = dict(
        images=[dict(id=i + 1, height=_HEIGHT, width=_WIDTH) for i in range(images)],
        categories=[dict(id=c + 1, name=str(c)) for c in range(CATEGORIES)],
        annotations=[
            dict(id=i + 1, image_id=int(image[i]) + 1, category_id=int(category[i]) + 1)
            | dict(bbox=boxes[i].tolist(), area=float(boxes[i, 2] * boxes[i, 3] * 0.78))
            | dict(iscrowd=int(random.random() < 0.01 and kind == "box"), **shapes[i])
            for i in range(objects)
        ],
    )
    of_detection = np.repeat(np.arange(images), detections)
    low = np.searchsorted(image, of_detection)
    count = np.searchsorted(image, of_detection, side="right") - low
    near = low + (random.random(len(low)) * count).astype(int)
    near = np.where(count, near, random.integers(objects, size=len(low)))
    good = (random.random(len(low)) < 0.5) & (count > 0)
    spread = np.where(good, 0.1, 1)[:, None]
    found = boxes[near]
    found[:, :2] += random.normal(0, 0.7, (len(low), 2)) * spread * found[:, 2:]
    found[:, 2:] *= np.exp(random.normal(0, 0.4, (len(low), 2)) * spread)
    guess = random.integers(CATEGORIES, size=len(low))
    kinds = np.where(random.random(len(low)) < 0.75, category[near], guess)
    score = random.beta(1, 4, len(low)) * 0.5 + 0.5 * good * random.random(len(low))
    shapes = _shapes(kind, found, compress=True)
    results = [
        dict(image_id=int(i) + 1, category_id=int(c) + 1, score=float(s), **shape)
        for i, c, s, shape in zip(of_detection, kinds, score, shapes, strict=True)
    ]
    return truth, results


def _shapes(kind: str, boxes: np.ndarray, compress: bool) -> list[dict]:
    """The boxes, or ellipses in them: polygons, compressed to run lengths or not."""
    if kind == "box":
        return [dict(bbox=box) for box in boxes.tolist()]
    half = boxes[:, None, 2:] / 2
    points = boxes[:, None, :2] + half * (1 + np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1))
    polygons = points.reshape(len(boxes), -1).clip(0, _WIDTH).tolist()
    if not compress:
        return [dict(segmentation=[polygon]) for polygon in polygons]
    return [
        dict(segmentation=masks.frPyObjects([polygon], _HEIGHT, _WIDTH)[0]) for polygon in polygons
    ]


def pycocotools(truth: dict, results: list[dict], kind: str) -> list[float]:
    """The twelve figures, 0..100."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), KINDS[kind])
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return (100 * evaluation.stats).tolist()


def ours(truth: dict, results: list[dict], kind: str) -> list[float]:
    return list(average_precision.coco_figures(matches.compute(truth, results, kind)).values())


def write_lvis(folder: Path, images: int) -> tuple[Path, Path]:
    """A set of LVIS's shape, 1,200 categories, and detections: a line of JSON per `_BLOCK` images,
    as an evaluation under way keeps them."""
    truth, found = folder / "truth.json", folder / "detections.jsonl"
    whole = dict(
        images=[],
        annotations=[],
        categories=[dict(id=c + 1, name=str(c), frequency="rcf"[c % 3]) for c in range(1200)],
    )
    objects = LVIS_OBJECTS * IMAGES // LVIS_IMAGES
    with open(found, "w") as file:
        for first in range(0, images, _BLOCK):
            count = min(_BLOCK, images - first)
            block, results = simulate("mask", count, first, objects, LVIS_DETECTIONS)
            shift = first // _BLOCK % (1200 // CATEGORIES) * CATEGORIES
            for entry in (*block["annotations"], *results):
                entry["image_id"] += first
                entry["category_id"] += shift
            for image in block["images"]:
                image["id"] += first
                image["neg_category_ids"] = list(range(shift + 1, shift + CATEGORIES + 1))
                image["not_exhaustive_category_ids"] = []
            here = {(a["image_id"], a["category_id"]) for a in block["annotations"]}
            for image in block["images"]:
                image["neg_category_ids"] = [
                    c for c in image["neg_category_ids"] if (image["id"], c) not in here
                ]
            for annotation in block["annotations"]:
                annotation["id"] = len(whole["annotations"]) + 1
                del annotation["iscrowd"]
                whole["annotations"].append(annotation)
            whole["images"] += block["images"]
            boxes = masks.toBbox([result["segmentation"] for result in results]).tolist()
            for result, box in zip(results, boxes, strict=True):
                result["bbox"] = box
                result["segmentation"]["counts"] = result["segmentation"]["counts"].decode()
            file.write(json.dumps(results) + "\n")
    truth.write_text(json.dumps(whole))
    return truth, found


def lvis(truth: Path, found: Path) -> list[float]:
    """LVIS's figures of boxes, then of masks; the detections are never in memory together."""

    def parts() -> Iterator[list[dict]]:
        with open(found) as file:
            yield from map(json.loads, file)

    scored = matches.of_parts(truth, found, list(KINDS), "lvis", parts)
    return [
        value for kind in KINDS for value in average_precision.lvis_figures(scored[kind]).values()
    ]


def resamples(truth: dict, results: list[dict], kind: str) -> list[float]:
    """A paired difference to the run without its last detection of each image."""
    runs = (results, [r for i, r in enumerate(results) if i % 100 != 99])
    draws = [bootstrap.draw(matches.compute(truth, run, kind)) for run in runs]
    difference = bootstrap.paired(draws[:1], draws[1:])["AP"]
    return [difference.value, difference.std]


ROWS: dict[str, tuple[str, Callable]] = {
    "box: pycocotools": ("box", pycocotools),
    "box: ours": ("box", ours),
    "mask: pycocotools": ("mask", pycocotools),
    "mask: ours": ("mask", ours),
    f"box: {bootstrap.RESAMPLES} paired resamples": ("box", resamples),
}
LVIS_ROW = "LVIS: ours, boxes and masks"


def measured(row: str, images: int = IMAGES) -> dict:
    """Seconds, the process's peak memory, the set in it, and what came out."""
    kind, function = ROWS[row]
    return _timed(row, images, function, *simulate(kind, images), kind)


def measured_lvis(folder: Path, images: int = LVIS_IMAGES) -> dict:
    """`measured` of the set that `write_lvis` left in a folder, which it reads itself."""
    return _timed(LVIS_ROW, images, lvis, folder / "truth.json", folder / "detections.jsonl")


def _timed(row: str, images: int, function: Callable, *args) -> dict:
    before = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    values = function(*args)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak = after.ru_maxrss / 2**20
    return dict(row=row, wall=wall, cpu=cpu, peak_gib=peak, images=images, values=values)


def measure(images: int = IMAGES) -> pd.DataFrame:
    """A line per row, each in a process of its own: see `compared`."""
    found = [_apart(measured, row, images) for row in ROWS]
    with tempfile.TemporaryDirectory() as folder:
        lvis_images = images * LVIS_IMAGES // IMAGES
        _apart(write_lvis, Path(folder), lvis_images)
        found.append(_apart(measured_lvis, Path(folder), lvis_images))
    return compared(found)


def compared(found: list[dict]) -> pd.DataFrame:
    """Rows of `measured`; `error` is the largest difference of a figure to pycocotools'."""
    table = pd.DataFrame(found).set_index("row")
    for kind in KINDS:
        theirs, mine = (table.loc[f"{kind}: {name}"] for name in ("pycocotools", "ours"))
        table.loc[f"{kind}: ours", "times_faster"] = theirs["cpu"] / mine["cpu"]
        error = np.abs(np.subtract(theirs["values"], mine["values"])).max()
        table.loc[f"{kind}: ours", "error"] = error
    return table.drop(columns="values").reset_index()


def _apart(function: Callable, *args):
    """In a process of its own, whose memory is this row's alone."""
    with multiprocessing.get_context("spawn").Pool(1) as process:
        return process.apply(function, args)


def shown(table: pd.DataFrame, style: str = "simple") -> str:
    """The table, as text."""
    columns = {
        "": table.row,
        "wall s": [f"{value:.1f}" for value in table.wall],
        "CPU s": [f"{value:.1f}" for value in table.cpu],
        "peak GiB": [f"{value:.2f}" for value in table.peak_gib],
        "faster, CPU": ["" if pd.isna(v) else f"{v:.1f}x" for v in table.times_faster],
        "largest difference, AP": ["" if pd.isna(v) else f"{v:.0e}" for v in table.error],
    }
    return tabulate(columns, headers="keys", tablefmt=style, disable_numparse=True)


def bench(to: Path, provenance: dict, console: Console) -> None:
    """Measure, print the table, and keep it as evaluation.csv and evaluation.md."""
    table = measure().assign(**provenance)
    console.print(shown(table))
    text = [
        f"{IMAGES:,} images, {OBJECTS:,} objects, {DETECTIONS * IMAGES:,} detections; of LVIS"
        f" {LVIS_IMAGES:,}, {LVIS_OBJECTS:,}, {LVIS_DETECTIONS * LVIS_IMAGES:,}:",
        "",
    ]
    text += [shown(table, "pipe"), "", *__doc__.splitlines()[2:]]
    written = page.write(to, SUITE, table, text, provenance)
    console.print(f"\nwritten: {'  '.join(map(str, written))}")
