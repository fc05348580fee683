"""The same images with every variant's predictions: what is right, wrong and missed."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from PIL import Image
from pycocotools import mask as masks

from experiments.data import annotations
from experiments.data.annotations import parse_split
from experiments.data.images import load
from experiments.errors import UserError
from experiments.evaluation.detections import read_results, run_lengths

from . import style
from .error_types import FOREGROUND, by_image, match, overlaps
from .results import Results

SCORE = 0.5  # predictions below are not shown and not counted
_SIDE, _GAP = 200, 6  # pixels of a cell's longer side at most, and between cells
_MARGINS = (16, 26, 38)  # pixels at the left, below and above
_WIDTH = 620  # pixels at least: title and legend need them
_INCH = 0.01  # of a pixel
_FADE = 0.5  # share of white over the images, so that lines show
_COLORS = 48  # of an image: few pack well
_LOOKS = {
    "object": dict(color="#0072b2", linestyle="-"),
    "right": dict(color="#0072b2", linestyle="-"),
    "wrong": dict(color="#d55e00", linestyle="--"),
    "missed": dict(color="black", linestyle=":"),
    "crowd": dict(color="0.35", linestyle="-."),
}


@dataclass(frozen=True, eq=False)
class _Seen:
    """What a variant made of an image: its predictions, and the objects that it missed."""

    right: list[dict]
    wrong: list[dict]
    missed: list[dict]


def picture(results: Results, path: Path, images: int = 6) -> list[Path]:
    """Draw the images on which variants differ most, a column each beside the ground truth's.

    Predictions with a score of at least `SCORE` are shown: right ones by COCO's rules at a box IoU
    of 0.5, and others, but those in crowd regions. Of a variant it is its first seed that is done.
    The images are those with the largest range over variants of the share of objects found; of
    equal ones those with the largest range of their number, then with the most that is wrong or
    missed, then by id.

    Returns:
        The files written, see `style.save`; the .csv has the numbers of each image and variant.
        None if no run with box AP is done, or for LVIS, whose images are not searched for every
        category: what is wrong there is not known.

    Raises:
        UserError: the annotations, predictions or images are not where the runs found them.
    """
    runs = results.records
    runs = runs[runs["ap_box"].notna()] if "ap_box" in runs else runs[:0]
    if runs.empty or any(data.get("kind", "coco") != "coco" for data in runs["data"]):
        return []
    runs = runs.sort_values("seed", kind="stable").drop_duplicates("variant").set_index("variant")
    runs = runs.loc[[v for v in results.table["variant"] if v in runs.index]]
    root = _image_root(runs)
    truth = annotations.read(runs["data"].iloc[0]["val"])
    sheet = {
        variant: _judged(truth, read_results(Path(run["path"]).parent / run["predictions"]))
        for variant, run in runs.iterrows()
    }
    table = _table(truth, sheet)
    listed = {image["id"]: image for image in truth["images"]}
    chosen = [listed[i] for i in _choose(table, images)]
    pixels = [_pixels(root / image["file_name"]) for image in chosen]
    style.use()
    figure = _draw(truth, chosen, pixels, sheet)
    few = f"the {len(chosen)} of {len(listed)} images "
    few += "on which variants differ most" if len(sheet) > 1 else "with most errors"
    figure.suptitle(f"{results.manifest['study']}: {few}, first seeds", fontsize=8, y=0.995)
    shown = table["image"].isin([image["id"] for image in chosen])
    written = style.save(figure, path, table[shown])
    with Image.open(written[0]) as png:  # a palette makes a third of it
        packed = png.convert("RGB").quantize(
            method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE
        )
    packed.save(written[0], optimize=True)
    return written


def _image_root(runs: pd.DataFrame) -> Path:
    """The folder of images that the first run with a config of ours was evaluated on."""
    for config in runs["config"]:
        if config and "dataloader" in config:
            return Path(parse_split(config["dataloader"]["test"]["dataset"]).image_root)
    raise UserError(f"no run of {', '.join(runs.index)} says where its images are: no sheet")


def _pixels(path: Path) -> Image.Image:
    """An image as it lies under a cell: small, pale, of few colors."""
    image = load(str(path))
    image.thumbnail((_SIDE, _SIDE))
    image = Image.blend(image, Image.new("RGB", image.size, "white"), _FADE)
    return image.quantize(_COLORS, kmeans=2, dither=Image.Dither.NONE).convert("RGB")


def _judged(truth: dict, predictions: list[dict]) -> dict[int, _Seen]:
    """Of each image id."""
    seen = {}
    shown = [p for p in predictions if p["score"] >= SCORE]
    ids = sorted(image["id"] for image in truth["images"])
    for key, (size, detections, objects) in zip(ids, by_image(truth, shown), strict=True):
        iou = overlaps(detections, objects, "box", size)
        right, ignored, found = match(detections, objects, iou)
        seen[key] = _Seen(
            [d for d, r in zip(detections, right, strict=True) if r],
            [d for d, other in zip(detections, right | ignored, strict=True) if not other],
            [o for o, f in zip(objects, found, strict=True) if not f and not o.get("iscrowd")],
        )
    return seen


def _table(truth: dict, sheet: dict[str, dict[int, _Seen]]) -> pd.DataFrame:
    return pd.DataFrame(
        dict(
            image=image["id"],
            file_name=image["file_name"],
            variant=variant,
            right=len(seen[image["id"]].right),
            wrong=len(seen[image["id"]].wrong),
            missed=len(seen[image["id"]].missed),
        )
        for image in truth["images"]
        for variant, seen in sheet.items()
    )


def _choose(table: pd.DataFrame, images: int) -> list[int]:
    """Ids of the images that are shown, see `picture`."""
    share = table["right"] / (table["right"] + table["missed"]).clip(lower=1)
    errors = table["wrong"] + table["missed"]
    groups = table.assign(share=share, errors=errors).groupby("image")
    ranges = groups[["share", "right"]].max() - groups[["share", "right"]].min()
    order = ranges.assign(errors=groups["errors"].sum()).sort_index()
    order = order.sort_values(["share", "right", "errors"], ascending=False, kind="stable")
    return order.index[:images].tolist()


# ---- Drawing -----------------------------------------------------------------------------------


def _draw(
    truth: dict, images: list[dict], pixels: list[Image.Image], sheet: dict[str, dict[int, _Seen]]
) -> Figure:
    names = {c["id"]: c["name"] for c in truth["categories"]}
    step = max(image.width for image in pixels) + _GAP
    tops = np.cumsum([0, *(image.height + _GAP for image in pixels)])
    columns = 1 + len(sheet)
    wide, high = columns * step, tops[-1]
    left, below, above = _MARGINS
    size = max(left + wide, _WIDTH), below + high + above
    figure = plt.figure(figsize=(size[0] * _INCH, size[1] * _INCH))
    axis = figure.add_axes((left / size[0], below / size[1], wide / size[0], high / size[1]))
    # One raster under all cells: it packs well, as its lines repeat themselves.
    canvas = np.full((high, wide, 3), 255, np.uint8)
    for row, image in enumerate(pixels):
        for start in range(0, wide, step):
            canvas[tops[row] :, start:][: image.height, : image.width] = image
    axis.imshow(canvas, interpolation="none")
    for row, image in enumerate(images):
        objects = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        views = [[("crowd" if o.get("iscrowd") else "object", o) for o in objects]]
        views += [_looks(seen[image["id"]]) for seen in sheet.values()]
        for column, view in enumerate(views):
            cell = _Cell(axis, column * step, tops[row], pixels[row].size, image)
            for look, shape in view:
                cell.draw(look, shape, names[shape["category_id"]])
        middle = tops[row] + pixels[row].height / 2
        axis.text(
            -4, middle, f"image {image['id']}", fontsize=6, rotation=90, ha="right", va="center"
        )
    for column, title in enumerate(["ground truth", *sheet]):
        middle = column * step + (step - _GAP) / 2
        axis.text(middle, -4, title, fontsize=7, ha="center", va="bottom")
    axis.set_axis_off()
    shown = {
        "right": f"right: score ≥ {SCORE}, category, box IoU ≥ {FOREGROUND}",
        "wrong": "wrong",
        "missed": "missed",
        "crowd": "crowd region",
    }
    figure.legend(
        [Line2D([], [], linewidth=1.2, **_LOOKS[look]) for look in shown],
        list(shown.values()),
        loc="lower center",
        ncols=len(shown),
        fontsize=7,
        handlelength=3.5,
        frameon=False,
    )
    return figure


def _looks(seen: _Seen) -> list[tuple[str, dict]]:
    """Each shape to draw, and as what; those that are wrong last, so on top."""
    return [(look, shape) for look in ("missed", "right", "wrong") for shape in vars(seen)[look]]


@dataclass(frozen=True, eq=False)
class _Cell:
    """Where on the sheet an image lies."""

    axis: Axes
    left: int
    top: int
    size: tuple[int, int]  # width, height
    image: dict  # its entry in the annotation file

    def draw(self, look: str, shape: dict, label: str) -> None:
        """A box; of what is not missed, the outline of its mask, if it has one; its category, if it
        is the ground truth's or wrong."""
        scale = np.array([self.size[0] / self.image["width"], self.size[1] / self.image["height"]])
        corner = np.array([self.left, self.top]) - 0.5
        x, y, width, height = np.array(shape["bbox"]) * np.tile(scale, 2)
        parts = [np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)])]
        if look != "missed" and shape.get("segmentation"):
            mask = masks.decode(run_lengths(shape, (self.image["height"], self.image["width"])))
            parts += [(points + 0.5) * scale for points in _outlines(mask, 0.6 / scale.max())]
        paths = [Outline(np.vstack([part, part[:1]]) + corner, closed=True) for part in parts]
        line = dict(_LOOKS[look], linewidth=0.8)
        patch = PathPatch(Outline.make_compound_path(*paths), fill=False, **line)
        score = f" {shape['score']:.2f}" if "score" in shape else ""
        style.tip(patch, f"{look}: {label}{score}")
        self.axis.add_artist(patch)
        if look in ("object", "wrong"):
            at_right = x + width / 2 > self.size[0] / 2
            self.axis.text(
                corner[0] + x + width * at_right,
                corner[1] + y,
                label,
                fontsize=4,
                color=line["color"],
                ha="right" if at_right else "left",
                va="top",
                bbox=dict(facecolor="white", alpha=0.7, pad=0.3, linewidth=0),
            )


def _outlines(mask: np.ndarray, error: float) -> list[np.ndarray]:
    """Polygons, (N, 2) as x and y of pixels, within so many pixels of a mask's outlines."""
    found, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    return [cv2.approxPolyDP(points, error, closed=True)[:, 0] for points in found]
