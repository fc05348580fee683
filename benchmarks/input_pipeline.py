"""The training input of the COCO recipe, images per second of one core: ours beside detectron2's.

Rows take turns on the same images with the same seeds, each in a process of its own with one
thread. Seconds are of CPU time, so that what else the machine does is not counted; medians over the
rounds, in brackets the slowest and the fastest. "small scale" is that one's recipe, to 512 px;
"decoding alone" is what all mappers begin with.
"""

import contextlib
import hashlib
import io
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import PIL
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetMapper, MetadataCatalog, get_detection_dataset_dicts
from detectron2.structures import BoxMode
from PIL import Image
from rich.console import Console
from tabulate import tabulate

from experiments import CONFIGS
from experiments.data import images
from experiments.data.mapper import Mapper

from . import page

SUITE = "input"
DATASET = "coco_2017_train"
# Mapper, and the config whose augmentations it has.
_COCO, _SMALL = CONFIGS / "common/data.py", CONFIGS / "small/mask_rcnn_vit_s.py"
ROWS = {
    "detectron2": (DatasetMapper, _COCO),
    "ours": (Mapper, _COCO),
    "ours, small scale": (Mapper, _SMALL),
    "decoding alone": None,
}
IMAGES, ROUNDS = 200, 7
_HEIGHT, _WIDTH, _OBJECTS, _CORNERS = 480, 640, 7, 24


def dataset(folder: Path, count: int = IMAGES) -> tuple[str, list[dict]]:
    """What the images are, and `count` dataset dicts: of COCO's train2017 if it is there, some
    of them twice if that one has fewer."""
    if Path(MetadataCatalog.get(DATASET).get("json_file", "")).is_file():
        with contextlib.redirect_stdout(io.StringIO()):
            dicts = get_detection_dataset_dicts(DATASET)
        chosen = np.resize(np.random.default_rng(0).permutation(len(dicts)), count)
        distinct = len(np.unique(chosen))
        return f"{distinct} images of COCO train2017", [dicts[i] for i in chosen]
    made = f"{count} generated images, {_WIDTH} x {_HEIGHT}, of {_OBJECTS} objects"
    return made, [generated(folder / f"{i}.jpg", seed=i) for i in range(count)]


def generated(path: Path, seed: int) -> dict:
    """An image with structure at all scales, as photographs have, and polygons at random."""
    random = np.random.default_rng(seed)
    pixels = np.zeros((_HEIGHT, _WIDTH, 3))
    for side in (4, 16, 64, 256):
        noise = Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8))
        pixels += np.asarray(noise.resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC)) / 4
    Image.fromarray(pixels.astype(np.uint8)).save(path, quality=90)
    angles = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
    annotations = []
    for _ in range(_OBJECTS):
        radius = np.exp(random.normal(4, 0.8)) / 2 * random.uniform(0.7, 1.3, (_CORNERS, 1))
        center = random.random(2) * [_WIDTH, _HEIGHT]
        points = center + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
        points = points.clip(0, [_WIDTH, _HEIGHT]).round(2)
        low, high = points.min(0), points.max(0)
        annotation = dict(bbox=[*low.tolist(), *(high - low).tolist()], iscrowd=0, category_id=0)
        annotation.update(bbox_mode=BoxMode.XYWH_ABS, segmentation=[points.ravel().tolist()])
        annotations.append(annotation)
    return dict(
        file_name=str(path),
        image_id=seed,
        height=_HEIGHT,
        width=_WIDTH,
        annotations=annotations,
    )


def mapper(row: str):
    """The recipe's mapper, or its reader of images."""
    if ROWS[row] is None:
        return lambda entry: images.load(entry["file_name"])
    target, file = ROWS[row]
    cfg = LazyConfig.load(str(file))
    return instantiate({**cfg.dataloader.train.mapper, "_target_": target})


def digest(row: str, dicts: list[dict]) -> str:
    """Of all tensors that a mapper makes of the images, augmented by seeds 0, 1, ..."""
    torch.set_num_threads(1)
    found = hashlib.sha256()
    function = mapper(row)
    for seed, entry in enumerate(dicts):
        np.random.seed(seed)
        example = function(entry)
        instances = example["instances"]
        arrays = [example["image"], instances.gt_boxes.tensor, instances.gt_classes]
        arrays += [p for polygons in instances.gt_masks.polygons for p in polygons]
        for array in map(np.asarray, arrays):
            found.update(repr((array.shape, array.dtype)).encode() + array.tobytes())
    return found.hexdigest()


def measured(row: str, dicts: list[dict]) -> dict[str, float]:
    """Images per second, of CPU time and of the clock."""
    torch.set_num_threads(1)
    function = mapper(row)
    wall, cpu = time.perf_counter(), time.process_time()
    for seed, entry in enumerate(dicts):
        np.random.seed(seed)
        function(entry)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return dict(per_cpu_second=len(dicts) / cpu, per_wall_second=len(dicts) / wall)


def measure(dicts: list[dict], rounds: int = ROUNDS) -> pd.DataFrame:
    """A line per row; `same` says whether its tensors are detectron2's to the bit."""
    processes = multiprocessing.get_context("spawn")
    pools = {row: processes.Pool(1) for row in ROWS}
    try:
        mappers = [row for row in ROWS if ROWS[row] and ROWS[row][1] == _COCO]
        digests = {row: pools[row].apply(digest, (row, dicts)) for row in mappers}
        samples = pd.DataFrame(
            dict(row=row, turn=turn, **pools[row].apply(measured, (row, dicts)))
            for turn in range(-1, rounds)
            for row in ROWS
        ).query("turn >= 0")  # the first warms up
    finally:
        for pool in pools.values():
            pool.terminate()
    by_turn = samples.pivot(index="turn", columns="row", values="per_cpu_second")
    wall = samples.groupby("row").per_wall_second.median()
    lines = []
    for row in ROWS:
        times = by_turn[row] / by_turn["detectron2"]
        line = dict(row=row, images=len(dicts), rounds=rounds)
        for name, values in (("per_cpu_second", by_turn[row]), ("times_faster", times)):
            line.update({name: values.median(), f"{name}_min": values.min()})
            line[f"{name}_max"] = values.max()
        line["per_wall_second"] = wall[row]
        line["same"] = digests[row] == digests["detectron2"] if row in digests else None
        lines.append(line)
    return pd.DataFrame(lines)


def shown(table: pd.DataFrame, style: str = "simple") -> str:
    """The table, as text."""

    def spread(name: str, form: str) -> list[str]:
        values = zip(*(table[f"{name}{end}"] for end in ("", "_min", "_max")), strict=True)
        return [f"{m:{form}} ({low:{form}} .. {high:{form}})" for m, low, high in values]

    columns = {
        "": table.row,
        "images / s of one core": spread("per_cpu_second", ".1f"),
        "times detectron2's": spread("times_faster", ".2f"),
        "by the clock": [f"{value:.1f}" for value in table.per_wall_second],
        "same tensors": ["" if v is None else "yes" if v else "NO" for v in table.same],
    }
    return tabulate(columns, headers="keys", tablefmt=style, disable_numparse=True)


def bench(to: Path, provenance: dict, console: Console) -> None:
    """Measure, print the table, and keep it as input.csv and input.md."""
    with tempfile.TemporaryDirectory() as folder:
        data, dicts = dataset(Path(folder))
        provenance = {**provenance, "threads": 1, "pillow": PIL.__version__}
        console.print(f"{data}, {ROUNDS} rounds of {IMAGES}")
        table = measure(dicts).assign(data=data, **provenance)
    console.print(shown(table))
    text = [f"Large-scale jitter, to 1024 px if not said; {data}, {ROUNDS} rounds of {IMAGES}:", ""]
    text += [shown(table, "pipe"), "", *__doc__.splitlines()[2:]]
    written = page.write(to, SUITE, table, text, provenance)
    console.print(f"\nwritten: {'  '.join(map(str, written))}")
