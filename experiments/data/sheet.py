"""A look at a data set: its numbers, and a sheet of annotated images."""

import contextlib
import io
from collections import Counter
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.detection_utils import read_image
from detectron2.utils.visualizer import ColorMode, Visualizer
from PIL import Image
from pycocotools.coco import COCO

from .catalog import Split

_SMALL, _LARGE = 32**2, 96**2  # COCO's limits on mask area, in pixels


def summary(split: Split) -> list[str]:
    """Images, objects per category and per COCO size, crowd regions."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(split.json_file)
    objects = [a for a in coco.anns.values() if not a.get("iscrowd", 0)]
    names = {c["id"]: c["name"] for c in coco.cats.values()}
    categories = Counter(names[a["category_id"]] for a in objects)
    sizes = Counter(
        "small" if a["area"] < _SMALL else "medium" if a["area"] < _LARGE else "large"
        for a in objects
    )
    shown = categories.most_common(8)
    more = (
        f", and {len(categories) - len(shown)} more categories"
        if len(categories) > len(shown)
        else ""
    )
    crowds = len(coco.anns) - len(objects)
    return [
        f"{len(coco.imgs)} images, {len(objects)} objects, {crowds} crowd regions",
        "by category: " + ", ".join(f"{name} {count}" for name, count in shown) + more,
        "by size: " + ", ".join(f"{size} {sizes[size]}" for size in ("small", "medium", "large")),
    ]


def write(split: Split, path: Path, columns: int = 6, rows: int = 4, tile: int = 320) -> None:
    """A sheet of the first images with their boxes, masks and categories.

    Args:
        tile: side of one image on the sheet, in pixels.
    """
    name = split.register()
    with contextlib.redirect_stdout(io.StringIO()):
        dicts = get_detection_dataset_dicts(name, filter_empty=False)[: columns * rows]
    page = Image.new("RGB", (columns * tile, rows * tile), "white")
    for i, entry in enumerate(dicts):
        image = read_image(entry["file_name"], "RGB")
        scale = (tile - 4) / max(image.shape[:2])
        visualizer = Visualizer(image, MetadataCatalog.get(name), scale, ColorMode.IMAGE)
        drawn = Image.fromarray(
            np.ascontiguousarray(visualizer.draw_dataset_dict(entry).get_image())
        )
        page.paste(drawn, (i % columns * tile, i // columns * tile))
    page.save(path)
