"""Every defect of a data set: its annotation file, and each image read whole, once.

`catalog.read_split` stops a run at the first thing that it could not survive; this goes on, and
looks at what a run survives too. What training leaves out is detectron2's doing (public files
data/datasets/coco.py, data/build.py, data/dataset_mapper.py, data/detection_utils.py).
"""

import csv
import hashlib
import itertools
import math
import os
import reprlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycocotools import mask as masks
from rich.console import Console
from torch.utils.data import DataLoader, Dataset

from .. import progress
from ..errors import UserError
from ..run_lengths import first_broken
from . import catalog, images
from .catalog import Split

_SLACK = 0.1  # pixels that a box may reach over the image: coordinates are rounded
# Pixels between a box and its mask: boxes of COCO's crowds end one before their masks.
_TOLERANCE = 2.0
_SHOWN = {"error": 200, "note": 20}  # lines of one kind on the screen; all are in the file
_AT_ONCE = 8  # images that a process hands over together

_NO_START = ("error", "no run starts")
_STOPS = ("error", "a run stops there")
_ASTRAY = ("error", "a run stops there, leaves the object out, or learns another")
_WRONG = ("error", "scored wrong, or not at all")
_UNFINDABLE = ("error", "an object that no detection matches")
_LEFT_OUT = ("note", "left out of training")
_AS_IT_IS = ("note", "evaluated as it is")
_OF_MASK = "detectors with masks learn the mask's box"
# What each kind of defect does: severity and consequence in training, and in evaluation.
KINDS = {
    "incomplete entry": (("error", "no run starts, or it stops there"),) * 2,
    "duplicate image id": (_NO_START, _NO_START),
    "duplicate annotation id": (_NO_START, _NO_START),
    "duplicate category id": (_NO_START, _NO_START),
    "unknown image": (_NO_START, _NO_START),
    "unknown category": (_NO_START, _NO_START),
    "different categories": (_NO_START, _NO_START),
    "against LVIS's rules": (_NO_START, _NO_START),
    "marked ignore": (_NO_START, _NO_START),
    "no segmentation": (_NO_START, _NO_START),
    "missing image": (_NO_START, _NO_START),
    "unreadable image": (_STOPS, _STOPS),
    "wrong size": (_STOPS, _STOPS),
    "file listed twice": (("error", "each time with a part of its annotations"),) * 2,
    "in train and val": (("error", "AP is measured on what was trained on"),) * 2,
    "broken box": (_ASTRAY, _WRONG),
    "broken segmentation": (_ASTRAY, _WRONG),
    "box of negative size": (("error", f"{_OF_MASK}, others one to its other side"), _WRONG),
    "box far from its mask": (("error", f"{_OF_MASK}, others this"), _WRONG),
    "box without area": (("note", f"{_OF_MASK}, others leave it out"), _UNFINDABLE),
    "box outside the image": (("error", "left out, or learned in the padding"), _UNFINDABLE),
    "box partly outside": (
        ("note", "cut at the crop, not at the image"),
        _AS_IT_IS,
    ),
    "box differs from its mask": (("note", f"{_OF_MASK}, others this"), _AS_IT_IS),
    "invalid polygon": (("note", "left out of training; without another, the object too"), _WRONG),
    "empty mask": (("note", "left out of training by detectors with masks"), _UNFINDABLE),
    "area not above 0": (("note", "not used in training"), _WRONG),
    "same image twice": (("note", "counts each time"),) * 2,
    "image without annotations": (_LEFT_OUT, _AS_IT_IS),
    "image with crowds only": (_LEFT_OUT, _AS_IT_IS),
    "category without objects": (("note", "cannot be learned"), ("note", "not in the mean of AP")),
}


@dataclass(frozen=True)
class Defect:
    """One thing that is wrong with a split."""

    split: str  # "train" or "val"
    kind: str  # of KINDS
    what: str
    image_id: int | None = None
    file: str = ""  # of the image, in the split's folder
    annotation_id: int | None = None

    @property
    def severity(self) -> str:
        """ "error": training or evaluating would stop or be wrong; "note": it would not."""
        return KINDS[self.kind][self.split == "val"][0]

    @property
    def consequence(self) -> str:
        return KINDS[self.kind][self.split == "val"][1]

    def __str__(self) -> str:
        image = "" if self.image_id is None else f" image {self.image_id} ({self.file})"
        number = "" if self.annotation_id is None else f" annotation {self.annotation_id}"
        return f"{self.split}{image}{',' * bool(image and number)}{number}: {self.what}"


def check_data(splits: dict[str, Split], path: Path, console: Console, jobs: int = 0) -> int:
    """Print every defect of the splits, and write them as CSV.

    Args:
        splits: by "train" and "val", or one of them.
        path: of the CSV: split, kind, image_id, file, annotation_id, what, severity.
        jobs: processes that read images; 0: one per core.

    Returns:
        Exit code: 1 if there are errors, else 0.

    Raises:
        UserError: an annotation file or a folder cannot be read, or a process was killed.
    """
    start = time.perf_counter()
    files = []
    for name, split in splits.items():
        console.print(f"{name}: {split.json_file}\n  images in {split.image_root}", highlight=False)
        files.append(_AnnotationFile(name, split))
    if len(files) == 2:
        _compare_categories(*files)
    _read_images(files, jobs or len(os.sched_getaffinity(0)), console)
    count = sum(len(file.images) for file in files)
    console.print(f"{count} images in {time.perf_counter() - start:.1f} s", highlight=False)
    defects = [defect for file in files for defect in file.defects]
    _write(defects, path)
    _show(defects, path, console)
    return int(any(defect.severity == "error" for defect in defects))


# What a value must be, in words and as a test.
_WHOLE = ("a whole number", lambda v: isinstance(v, int) and abs(v) < 2**63)
_SIDE = ("a number of pixels", lambda v: isinstance(v, int) and 0 < v < 2**20)
_NUMBER = ("a number", lambda v: isinstance(v, int | float))
_TEXT = ("a text", lambda v: isinstance(v, str))
_LIST = ("a list", lambda v: isinstance(v, list))
_CROWD = ("0 or 1", lambda v: isinstance(v, int) and v in (0, 1))
_Keys = dict[str, tuple[str, Callable[[Any], bool]]]
_IMAGE: _Keys = dict(id=_WHOLE, height=_SIDE, width=_SIDE)
_CATEGORY: _Keys = dict(id=_WHOLE, name=_TEXT)
_ANNOTATION: _Keys = dict(id=_WHOLE, image_id=_WHOLE, category_id=_WHOLE, bbox=_LIST, area=_NUMBER)
# Image, category and annotation of each kind.
_KEYS: dict[str, tuple[_Keys, _Keys, _Keys]] = {
    "coco": (_IMAGE | dict(file_name=_TEXT), _CATEGORY, _ANNOTATION | dict(iscrowd=_CROWD)),
    "lvis": (
        _IMAGE | dict(coco_url=_TEXT, neg_category_ids=_LIST, not_exhaustive_category_ids=_LIST),
        _CATEGORY | dict(frequency=_TEXT),
        _ANNOTATION,
    ),
}


class _AnnotationFile:
    """What is wrong in an annotation file; its images and categories."""

    def __init__(self, name: str, split: Split):
        self.name, self.split = name, split
        self.defects: list[Defect] = []
        parts = catalog.read_parts(split)[0]
        of_image, of_category, of_annotation = _KEYS[split.kind]
        self._by_id: dict[int, dict] = {}
        self.images = self._entries(parts["images"], "image", of_image)
        self._check_images()
        categories = self._entries(parts["categories"], "category", of_category)
        self.categories = {c["id"]: c["name"] for c in categories}
        self._check_categories(categories)
        if split.kind == "lvis":
            self._check_lvis(categories)
        self._check_annotations(self._entries(parts["annotations"], "annotation", of_annotation))

    def file(self, image: dict) -> str:
        return self.split.image_file(image)

    def add(
        self, kind: str, what: str, image: dict | None = None, annotation: dict | None = None
    ) -> None:
        number, file = (image["id"], self.file(image)) if image else (None, "")
        self.defects.append(
            Defect(self.name, kind, what, number, file, annotation["id"] if annotation else None)
        )

    def _entries(self, entries: list, what: str, keys: _Keys) -> list[dict]:
        """Those that have all that they need."""
        whole = []
        for i, entry in enumerate(entries):
            if not isinstance(entry, dict):
                self.add("incomplete entry", f"{what} at entry {i} is no object")
                continue
            wrong = [
                f"lacks {key!r}" if key not in entry else f"has a {key!r} that is not {word}"
                for key, (word, fits) in keys.items()
                if key not in entry or not fits(entry[key])
            ]
            if wrong:
                of = ", ".join(
                    f"{key} {reprlib.repr(entry[key])}"
                    for key in ("id", "file_name", "coco_url")
                    if key in entry
                )
                number = entry.get("image_id")
                image = self._by_id.get(number) if isinstance(number, int) else None
                text = f"{what} at entry {i} ({of}) {', '.join(wrong)}"
                self.add("incomplete entry", text, image)
            else:
                whole.append(entry)
        return whole

    def _check_images(self) -> None:
        files: dict[str, dict] = {}
        for image in self.images:
            first = self._by_id.setdefault(image["id"], image)
            if first is not image:
                self.add("duplicate image id", f"{self.file(first)} has it too", image)
            first = files.setdefault(self.file(image), image)
            if first is not image:
                self.add("file listed twice", f"as image {first['id']} too", image)

    def _check_categories(self, categories: list[dict]) -> None:
        for number, count in Counter(c["id"] for c in categories).items():
            if count > 1:
                self.add("duplicate category id", f"{count} categories have the id {number}")

    def _check_lvis(self, categories: list[dict]) -> None:
        kind = "against LVIS's rules"
        if sorted(self.categories) != list(range(1, len(categories) + 1)):
            self.add(kind, "the ids of categories are not 1, 2, 3, ...")
        for category in categories:
            if category["frequency"] not in ("r", "c", "f"):
                self.add(kind, f"category {category['id']} has a frequency that is not r, c or f")
        for image in self.images:
            for key in ("neg_category_ids", "not_exhaustive_category_ids"):
                unknown = [
                    c for c in image[key] if not (isinstance(c, int) and c in self.categories)
                ]
                if unknown:
                    self.add(kind, f"its {key} has {unknown}, which are no categories", image)

    def _check_annotations(self, annotations: list[dict]) -> None:
        ids, usable, crowds = set(), Counter(), Counter()
        objects = Counter()
        for annotation in annotations:
            number, image = annotation["id"], self._by_id.get(annotation["image_id"])
            if number in ids:
                self.add("duplicate annotation id", "another has it too", image, annotation)
            ids.add(number)
            if annotation["category_id"] not in self.categories:
                what = f"category {annotation['category_id']} is not listed"
                self.add("unknown category", what, image, annotation)
            if image is None:
                what = f"image {annotation['image_id']} is not listed, or incomplete"
                self.add("unknown image", what, None, annotation)
                continue
            if annotation.get("iscrowd"):
                crowds[image["id"]] += 1
            else:
                usable[image["id"]] += 1
                objects[annotation["category_id"]] += 1
            for kind, what in _annotation_defects(annotation, image, self.split.kind):
                self.add(kind, what, image, annotation)
        for number, image in self._by_id.items():
            if not usable[number]:
                if crowds[number]:
                    self.add("image with crowds only", f"{crowds[number]} crowds", image)
                else:
                    self.add("image without annotations", "nothing to find", image)
        for category, name in self.categories.items():
            if not objects[category]:
                self.add("category without objects", f"category {category}, {name!r}")


_Box = tuple[float, float, float, float]  # x0, y0, x1, y1


def _annotation_defects(annotation: dict, image: dict, kind: str) -> Iterator[tuple[str, str]]:
    """Kind and description of what is wrong with an annotation of a listed image."""
    size = image["height"], image["width"]
    if kind == "coco" and annotation.get("ignore"):
        yield "marked ignore", "'ignore' is none of COCO's words: say 'iscrowd'"
    if not annotation["area"] > 0:
        yield "area not above 0", f"area {annotation['area']}"
    values = annotation["bbox"]
    inside = None
    if not _are_finite(values) or len(values) != 4:
        yield "broken box", f"box {reprlib.repr(values)} is not x, y, width, height"
    elif min(values[2:]) < 0:
        yield "box of negative size", f"box {values}"
    elif min(values[2:]) == 0:
        yield "box without area", f"box {values}"
    else:
        x, y, width, height = values
        box = x, y, x + width, y + height
        inside = _clip(box, size)
        if _is_empty(inside):
            yield "box outside the image", f"box {values}, image of {_pixels(size)}"
        elif _distance(box, inside) > _SLACK:
            yield "box partly outside", f"box {values}, image of {_pixels(size)}"

    segmentation = annotation.get("segmentation")
    if not segmentation:
        yield "no segmentation", "masks need one"
        return
    if kind == "lvis" and not catalog.are_polygons(segmentation):
        yield "against LVIS's rules", "segmentation is no list of polygons of 3 corners or more"
        return
    bounds, wrong = (_polygons if isinstance(segmentation, list) else _run_lengths)(
        segmentation, size
    )
    yield from wrong
    if bounds is None or inside is None or _is_empty(inside):
        return
    bounds = _clip(bounds, size)  # a mask may reach over the image where its box does not
    if _distance(inside, bounds) > _TOLERANCE:
        x, y, x1, y1 = bounds
        what = f"box {values}, mask's {[round(v, 2) for v in (x, y, x1 - x, y1 - y)]}"
        if _distance(values, bounds) <= _TOLERANCE:
            what += ": it fits as x0, y0, x1, y1, but COCO's is x, y, width, height"
        far = _iou(inside, bounds) < 0.5
        yield "box far from its mask" if far else "box differs from its mask", what


def _are_finite(values: Any) -> bool:
    """Whether it is a list of finite numbers."""
    if not isinstance(values, list) or not set(map(type, values)) <= {int, float}:
        return False
    try:
        return math.isfinite(sum(values))
    except OverflowError:
        return False


def _is_empty(box: _Box) -> bool:
    return box[2] <= box[0] or box[3] <= box[1]


def _clip(box: _Box, size: tuple[int, int]) -> _Box:
    """A box cut at an image of height, width."""
    height, width = size
    x0, y0, x1, y1 = box
    return (
        min(max(x0, 0), width),
        min(max(y0, 0), height),
        min(max(x1, 0), width),
        min(max(y1, 0), height),
    )


def _distance(a: Sequence[float], b: Sequence[float]) -> float:
    """Pixels that two boxes differ by at most, at any side."""
    return max(abs(v - w) for v, w in zip(a, b, strict=True))


def _iou(a: _Box, b: _Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return common / (sum(areas) - common)


_Mask = tuple[_Box | None, list[tuple[str, str]]]  # its bounds; what is wrong with it


def _polygons(polygons: list, size: tuple[int, int]) -> _Mask:
    if not all(map(_are_finite, polygons)):
        return None, [("broken segmentation", "a polygon is no list of finite numbers")]
    whole = [polygon for polygon in polygons if len(polygon) >= 6 and len(polygon) % 2 == 0]
    wrong = []
    if len(whole) < len(polygons):
        count = f"{len(polygons) - len(whole)} of {len(polygons)} polygons"
        wrong.append(("invalid polygon", f"{count} of less than 3 corners, or one without y"))
    if not whole:
        return None, wrong
    x = [side(side(polygon[0::2]) for polygon in whole) for side in (min, max)]
    y = [side(side(polygon[1::2]) for polygon in whole) for side in (min, max)]
    bounds = x[0], y[0], x[1], y[1]
    if _is_empty(bounds):
        return None, [*wrong, ("empty mask", "its polygons are a line or a point")]
    return bounds, wrong


def _run_lengths(segmentation: Any, size: tuple[int, int]) -> _Mask:
    kind = "broken segmentation"
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        return None, [(kind, "it is neither a list of polygons nor run lengths (size, counts)")]
    counts = segmentation["counts"]
    if segmentation["size"] != list(size):
        found = reprlib.repr(segmentation["size"])
        return None, [(kind, f"run lengths of [height, width] {found}, the image has {list(size)}")]
    if isinstance(counts, list):
        fits = set(map(type, counts)) <= {int} and min(counts, default=-1) >= 0
        fits = fits and sum(counts) == math.prod(size)
    else:
        fits = isinstance(counts, str) and first_broken([segmentation]) is None
    if not fits:
        return None, [(kind, "its run lengths do not add up to height times width")]
    if isinstance(counts, list):
        segmentation = masks.frPyObjects(segmentation, *size)
    x, y, width, height = masks.toBbox(segmentation)
    if not masks.area(segmentation):
        return None, [("empty mask", "no pixel is in it")]
    return (x, y, x + width, y + height), []


def _compare_categories(train: _AnnotationFile, val: _AnnotationFile) -> None:
    for number in sorted(train.categories.keys() | val.categories.keys()):
        names = [file.categories.get(number) for file in (train, val)]
        if names[0] != names[1]:
            of_train, of_val = ("missing" if name is None else repr(name) for name in names)
            what = f"category {number} is {of_train} in train, {of_val} in val"
            val.add("different categories", what)


class _Images(Dataset):
    """Reads image files: (height, width), digest of the file, and kind and text of a defect."""

    def __init__(self, paths: list[str]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[tuple[int, int], str, str, str]:
        path = Path(self.paths[index])
        if not path.is_file():
            return (0, 0), "", "missing image", f"no file {path}"
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            return images.read(path).shape[:2], digest, "", ""
        except (UserError, OSError) as error:
            return (0, 0), "", "unreadable image", str(error)


def _read_images(files: list[_AnnotationFile], jobs: int, console: Console) -> None:
    """Find what is wrong with the images of all files."""
    entries = [(file, image) for file in files for image in file.images]
    paths = [os.path.join(file.split.image_root, file.file(image)) for file, image in entries]
    loader = DataLoader(
        _Images(paths), _AT_ONCE, num_workers=min(jobs, len(paths)), collate_fn=list
    )
    seen: dict[str, tuple[_AnnotationFile, dict]] = {}
    batches = iter(loader)  # its processes start before the thread that draws the bar
    with progress.bar("reading images", console) as bar:
        task = bar.add_task("", total=len(paths))
        try:
            results = itertools.chain.from_iterable(batches)
            for (file, image), read in zip(entries, results, strict=True):
                _check_image(file, image, *read, seen)
                bar.advance(task)
        except RuntimeError as error:
            raise UserError(
                f"a process that reads images was ended ({error}): try --jobs 1"
            ) from error


def _check_image(
    file: _AnnotationFile,
    image: dict,
    size: tuple[int, int],
    digest: str,
    kind: str,
    what: str,
    seen: dict[str, tuple[_AnnotationFile, dict]],
) -> None:
    if kind:
        file.add(kind, what, image)
        return
    listed = image["height"], image["width"]
    if size != listed:
        what = f"the file has {_pixels(size)} as it is shown, the json says {_pixels(listed)}"
        file.add("wrong size", what, image)
    first, other = seen.setdefault(digest, (file, image))
    if first is not file:
        what = f"the same file as {first.name} image {other['id']} ({first.file(other)})"
        file.add("in train and val", what, image)
    elif file.file(other) != file.file(image):
        what = f"the same file as image {other['id']} ({file.file(other)})"
        file.add("same image twice", what, image)


def _pixels(size: tuple[int, int]) -> str:
    height, width = size
    return f"{width} x {height}"


def _show(defects: list[Defect], path: Path, console: Console) -> None:
    """By kind, and counts at the end; errors after the notes, where the eye is."""

    def say(text: str) -> None:
        text = text.encode(errors="backslashreplace").decode()
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    groups: dict[tuple[str, str, str], list[Defect]] = defaultdict(list)
    for defect in defects:
        groups[defect.severity, defect.kind, defect.split].append(defect)
    kinds = list(KINDS)
    for key in sorted(groups, key=lambda key: (key[0] == "error", kinds.index(key[1]), key[2])):
        severity, kind, split = key
        group = groups[key]
        say(f"{severity}: {kind}, {len(group)} in {split}: {group[0].consequence}")
        for defect in group[: _SHOWN[severity]]:
            say(f"  {defect}")
        if len(group) > _SHOWN[severity]:
            say(f"  ... and {len(group) - _SHOWN[severity]} more, see {path}")
    for severity in ("note", "error"):
        counts = Counter(defect.kind for defect in defects if defect.severity == severity)
        listed = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
        say(f"{counts.total()} {severity}s{': ' * bool(listed)}{listed}")
    say(f"each with image and file: {path}")


def _write(defects: list[Defect], path: Path) -> None:
    columns = ("split", "kind", "image_id", "file", "annotation_id", "what", "severity")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([getattr(defect, column) for column in columns] for defect in defects)
