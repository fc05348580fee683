"""A look at a data set: its numbers, and a sheet of annotated images."""

import contextlib
import io
import textwrap
from collections import Counter
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
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


def write(split: Split, path: Path, columns: int = 6, rows: int = 4) -> None:
    """A sheet of the first images with their boxes, masks and categories."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(split.json_file)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * 2.4, rows * 2.5))
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, image in zip(axes.flat, coco.imgs.values(), strict=False):
        with Image.open(Path(split.image_root) / split.image_file(image)) as pixels:
            axis.imshow(pixels.convert("RGB"))
        annotations = coco.imgToAnns[image["id"]]
        plt.sca(axis)
        with contextlib.redirect_stdout(io.StringIO()):
            coco.showAnns(annotations, draw_bbox=True)
        names = Counter(coco.cats[a["category_id"]]["name"] for a in annotations)
        title = ", ".join(f"{n} {name}" if n > 1 else name for name, n in names.items())
        axis.set_title(textwrap.shorten(title, 44, placeholder=" ..."), fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
