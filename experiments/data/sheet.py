"""A look at a data set: its numbers, and a sheet of annotated images."""

import contextlib
import io
import os
import textwrap
from collections import Counter
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle
from pycocotools.coco import COCO

from . import images
from .annotations import Split

_SMALL, _LARGE = 32**2, 96**2  # COCO's limits on mask area, in pixels


def summary(split: Split) -> list[str]:
    """Images, objects per category and per COCO size, crowd regions."""
    coco = _indexed(split)
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


def write(split: Split, path: Path, columns: int = 6, rows: int = 4) -> None:
    """A sheet of the first images with their boxes, masks and categories."""
    coco = _indexed(split)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * 2.4, rows * 2.5))
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, image in zip(axes.flat, coco.imgs.values(), strict=False):
        axis.imshow(images.read(os.path.join(split.image_root, split.image_file(image))))
        annotations = coco.imgToAnns[image["id"]]
        if any("segmentation" in a for a in annotations):
            plt.sca(axis)
            coco.showAnns(annotations, draw_bbox=True)
        else:
            for x, y, width, height in (a["bbox"] for a in annotations):
                axis.add_patch(Rectangle((x, y), width, height, fill=False, color="tab:red"))
        names = Counter(coco.cats[a["category_id"]]["name"] for a in annotations)
        title = ", ".join(f"{n} {name}" if n > 1 else name for name, n in names.items())
        axis.set_title(textwrap.shorten(title, 44, placeholder=" ..."), fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _indexed(split: Split) -> COCO:
    coco = COCO()
    coco.dataset = split.read()
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco
