"""Boxes and masks of an annotation file: where they lie, and what is wrong with one by itself."""

import reprlib
from collections.abc import Sequence
from typing import Any

from pycocotools import mask as masks

from . import annotations
from .annotations import are_finite

FAR = 2**20  # pixels: no image has a longer side, no polygon a corner so far out

Box = tuple[float, float, float, float]  # x0, y0, x1, y1


def is_empty(box: Box) -> bool:
    """Whether it has no area."""
    return box[2] <= box[0] or box[3] <= box[1]


def clip(box: Box, size: tuple[int, int]) -> Box:
    """A box cut at an image of height, width."""
    height, width = size
    x0, y0, x1, y1 = box
    return (
        min(max(x0, 0), width),
        min(max(y0, 0), height),
        min(max(x1, 0), width),
        min(max(y1, 0), height),
    )


def distance(a: Sequence[float], b: Sequence[float]) -> float:
    """Pixels that two boxes differ by at most, at any side."""
    return max(abs(v - w) for v, w in zip(a, b, strict=True))


def iou(a: Box, b: Box) -> float:
    """Their intersection over their union; one at least has an area."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return common / (sum(areas) - common)


Mask = tuple[Box | None, list[tuple[str, str]]]  # its bounds; what is wrong with it


def polygons(polygons: list, size: tuple[int, int]) -> Mask:
    """Of an object's mask in an image of height, width."""
    kind = "broken segmentation"
    if are_finite(polygons):
        what = "segmentation is a list of numbers: it must be one of polygons, [[x, y, x, y, ...]]"
        return None, [(kind, what)]
    if not all(map(are_finite, polygons)):
        return None, [(kind, "a polygon is no list of finite numbers [x, y, x, y, ...]")]
    if broken := [p for p in polygons if len(p) < 6 or len(p) % 2]:
        what = f"a polygon of {len(broken[0])} numbers: it must be x, y of three corners or more"
        return None, [(kind, what)]
    x = [side(side(polygon[0::2]) for polygon in polygons) for side in (min, max)]
    y = [side(side(polygon[1::2]) for polygon in polygons) for side in (min, max)]
    bounds = x[0], y[0], x[1], y[1]
    if max(map(abs, bounds)) >= FAR:
        return None, [(kind, f"a polygon reaches to {max(bounds, key=abs):g} pixels")]
    if is_empty(bounds):
        return None, [("empty mask", "its polygons are a line or a point")]
    return bounds, []


def run_lengths(segmentation: Any, size: tuple[int, int]) -> Mask:
    """Of an object's mask in an image of height, width."""
    kind = "broken segmentation"
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        return None, [(kind, "it is neither a list of polygons nor run lengths (size, counts)")]
    if segmentation["size"] != list(size):
        found = reprlib.repr(segmentation["size"])
        return None, [(kind, f"run lengths of [height, width] {found}, the image has {list(size)}")]
    if not annotations.fill_their_size(segmentation):
        return None, [(kind, "its run lengths do not add up to height times width")]
    if isinstance(segmentation["counts"], list):
        segmentation = masks.frPyObjects(segmentation, *size)
    x, y, width, height = masks.toBbox(segmentation)
    if not masks.area(segmentation):
        return None, [("empty mask", "no pixel is in it")]
    return (x, y, x + width, y + height), []
