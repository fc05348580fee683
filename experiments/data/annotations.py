"""Annotation files, COCO's format or LVIS v1's, read as exporters mean them.

All that needs annotations reads them here: training, scoring, every sheet. What differs from the
format and has one meaning only is made that meaning (`mended`); what is wrong beyond that is found
by `experiments.data.defects`.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycocotools import mask as masks

from ..errors import UserError
from .run_lengths import first_broken

# Whole numbers, by list of the file.
_WHOLE = {
    "images": ("id", "height", "width"),
    "categories": ("id",),
    "annotations": ("id", "image_id", "category_id", "iscrowd"),
}
# Folders that say nothing of the set that they are of.
_OF_LAYOUT = ("annotations", "train", "images", "labels", "data")
_EXACT = 2**53  # from here on a float is not one whole number
_LARGEST = 1e10  # pixels: COCO's evaluation ignores objects of a larger area


@dataclass(frozen=True)
class Split:
    """An annotation file and the folder of its images.

    Its kind, "coco" or "lvis" (v1), is the file's format and how detections on it are scored.
    """

    json_file: str
    image_root: str
    kind: str = "coco"

    def __str__(self) -> str:
        """As `parse_split` reads it."""
        prefix = "" if self.kind == "coco" else f"{self.kind}:"
        return f"{prefix}{self.json_file},{self.image_root}"

    @property
    def name(self) -> str:
        """What detectron2's catalog calls it: unique per file."""
        return "split_" + hashlib.sha256(str(self).encode()).hexdigest()[:12]

    def image_file(self, image: dict) -> str:
        """Where an image of the annotation file lies in the folder."""
        if self.kind == "coco":
            return image["file_name"]
        return "/".join(image["coco_url"].split("/")[-2:])

    def read(self) -> dict:
        """What the annotation file holds, as of `read`."""
        return read(self.json_file, self.kind)

    def register(self) -> str:
        """Make it known to detectron2, in this process; returns its name."""
        from . import catalog  # it takes seconds

        return catalog.register(self)


def parse_split(text: str) -> Split:
    """ "train.json,images/" as a split, "lvis:train.json,images/" as one in LVIS v1 format.

    Raises:
        UserError: not of that form.
    """
    kind = "lvis" if text.startswith("lvis:") else "coco"
    json_file, comma, image_root = text.removeprefix("lvis:").partition(",")
    if not comma:
        raise UserError(f"data set {text!r} is not of the form annotations.json,images/")
    return Split(os.path.abspath(json_file), os.path.abspath(image_root), kind)


def set_name(train: str, val: str) -> str:
    """What folders of a set of the user's own are called by: its folder's name, and six digits that
    the paths of both its splits make.

    Args:
        train, val: as `parse_split` reads them.
    """
    splits = [parse_split(text) for text in (train, val)]
    parents = Path(splits[0].json_file).parents
    name = next((p.name for p in parents if p.name not in _OF_LAYOUT), "")
    mark = hashlib.sha256(" ".join(map(str, splits)).encode()).hexdigest()[:6]
    return re.sub(r"[^\w.-]+", "-", f"{name or 'set'}-{mark}")


def study_folder(study: str, own_set: str = "") -> str:
    """The name of a study's folder: on each set of the user's own it has another."""
    return f"{study}@{own_set}" if own_set else study


def parse(path: str | Path) -> tuple[Any, bytes]:
    """What a JSON file holds, and its bytes; with or without a byte order mark.

    Raises:
        UserError: it cannot be read, or is no JSON.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    try:
        return json.loads(content), content
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no valid JSON: {error}") from error


def read(path: str | Path, kind: str = "coco") -> dict:
    """What an annotation file holds, mended, see `mended`.

    Raises:
        UserError: it cannot be read, or is no annotation file.
    """
    content, _ = parse(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is no annotation file in COCO's format")
    for _ in mended(content, kind):
        pass
    return content


@dataclass(frozen=True)
class Mend:
    """What was made of an entry of one of the file's lists."""

    kind: str  # of `experiments.data.kinds_of_defects.KINDS`
    part: str
    entry: dict
    what: str
    sort: str = ""  # as of `experiments.data.kinds_of_defects.Defect`


def mended(content: dict, kind: str) -> Iterator[Mend]:
    """Mend an annotation file's content in place, and say where.

    Whole numbers that are written as floats become whole. In COCO's format a missing or null
    `iscrowd` becomes 0; an `area` that is missing, null, NaN, not above 0 or above 1e10 that of the
    polygons or run lengths, or else of the box. Polygons of less than three corners, which have no
    area, are left out beside others; one polygon that is in no list of polygons is in one; and a
    segmentation of nothing is none.
    """
    for part, keys in _WHOLE.items():
        for entry in _entries(content, part):
            for key in keys:
                value = entry.get(key)
                if type(value) is float and (number := whole(value)) is not value:
                    entry[key] = number
                    yield Mend("whole number as a float", part, entry, f"{key} {value}", key)
    for annotation in _entries(content, "annotations"):
        if "segmentation" in annotation and _is_empty(annotation["segmentation"]):
            del annotation["segmentation"]
            yield Mend("empty segmentation", "annotations", annotation, "segmentation is empty")
        flat = annotation.get("segmentation")
        if are_finite(flat) and len(flat) >= 6 and len(flat) % 2 == 0:
            annotation["segmentation"] = [flat]
            yield Mend("polygon without a list", "annotations", annotation, "segmentation is flat")
        if few := _without_slivers(annotation):
            what = f"{few} of its polygons have less than 3 corners"
            yield Mend("polygon without area", "annotations", annotation, what)
        if kind == "lvis":
            continue
        if annotation.get("iscrowd") is None:
            what = "iscrowd is null" if "iscrowd" in annotation else "no iscrowd"
            annotation["iscrowd"] = 0
            yield Mend("no iscrowd", "annotations", annotation, what)
        area = annotation.get("area")
        if area is None or (isinstance(area, int | float) and not 0 < area <= _LARGEST):
            found = _area(annotation)
            if found is not None and found != area:
                annotation["area"] = found
                yield Mend("no area", "annotations", annotation, f"area {area}, made {found:g}")


def whole(value: Any) -> Any:
    """A float that is a whole number as that; anything else as it is."""
    is_whole = type(value) is float and value.is_integer() and abs(value) < _EXACT
    return int(value) if is_whole else value


def _entries(content: dict, part: str) -> Iterator[dict]:
    entries = content.get(part) if _is_list(content.get(part)) else ()
    return (entry for entry in entries if isinstance(entry, dict))


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_empty(segmentation: Any) -> bool:
    return not segmentation or (_is_list(segmentation) and all(p == [] for p in segmentation))


def _without_slivers(annotation: dict) -> int:
    """How many polygons are left out."""
    segmentation = annotation.get("segmentation")
    polygons = segmentation if _is_list(segmentation) else []
    if not all(map(_is_list, polygons)):
        return 0
    kept = [polygon for polygon in polygons if len(polygon) >= 6 or len(polygon) % 2]
    if not kept or len(kept) == len(polygons):
        return 0
    annotation["segmentation"] = kept
    return len(polygons) - len(kept)


def _area(annotation: dict) -> float | None:
    """Of an object's polygons or run lengths, or else of its box, in pixels; None: of neither."""
    segmentation = annotation.get("segmentation")
    if _is_list(segmentation) and all(map(are_finite, segmentation)):
        return sum(_polygon_area(polygon) for polygon in segmentation)
    if isinstance(segmentation, dict):
        if not fill_their_size(segmentation):
            return None
        counts = segmentation["counts"]
        return sum(counts[1::2]) if _is_list(counts) else int(masks.area(segmentation))
    box = annotation.get("bbox")
    return box[2] * box[3] if are_finite(box) and len(box) == 4 else None


def _polygon_area(corners: list[float]) -> float:
    x, y = corners[0::2], corners[1::2]
    n = min(len(x), len(y))
    return abs(sum(x[i - 1] * y[i] - x[i] * y[i - 1] for i in range(n))) / 2


def fill_their_size(segmentation: dict) -> bool:
    """Whether run lengths, of either form, have a size and add up to it."""
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not are_whole(size) or len(size) != 2:
        return False
    if isinstance(counts, str):
        return first_broken([segmentation]) is None
    return are_whole(counts) and sum(counts) == math.prod(size)


def are_whole(values: Any) -> bool:
    """Whether it is a list of whole numbers, none below 0."""
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)


def are_finite(values: Any) -> bool:
    """Whether it is a list of finite numbers."""
    if not isinstance(values, list) or not set(map(type, values)) <= {int, float}:
        return False
    try:
        return math.isfinite(sum(values))
    except OverflowError:
        return False
