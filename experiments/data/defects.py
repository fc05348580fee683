"""What is wrong with a file of annotations: what stops a run, and what `check-data` lists."""

import hashlib
import os
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError
from . import annotations, shapes
from .annotations import Split, are_finite
from .kinds_of_defects import Defect, grouped

SHOWN = 3  # defects of one kind that are told in words
_SLACK = 0.1  # pixels that a box may reach over the image: coordinates are rounded
# Pixels between a box and its mask: boxes of COCO's crowds end one before their masks.
_TOLERANCE = 2.0

# What a value must be, in words and as a test.
_WHOLE = ("a whole number", lambda v: type(v) is int and abs(v) < 2**63)
_SIDE = ("a number of pixels", lambda v: type(v) is int and 0 < v < shapes.FAR)
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


class DefectError(UserError):
    """An annotation file has an error: the first."""


class AnnotationFile:
    """An annotation file, mended, with all that is wrong in it.

    Args:
        name: "train" or "val".
        split: without an `image_root` it is not looked for images.

    Raises:
        UserError: the file or the folder of images cannot be read, or it is no JSON, or without
            images, annotations or categories.
    """

    def __init__(self, name: str, split: Split):
        self.name, self.split = name, split
        self.defects: list[Defect] = []
        content, as_bytes = annotations.parse(split.json_file)
        digest = hashlib.sha256(as_bytes)
        del as_bytes
        if split.image_root:
            try:
                os.listdir(split.image_root)
            except OSError as error:
                raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
        for part in ("images", "annotations", "categories"):
            found = content.get(part) if isinstance(content, dict) else None
            if not isinstance(found, list) or not found:
                raise UserError(
                    f"{split.json_file} is no {split.kind.upper()} detection set: it has no list "
                    f"of {part}"
                )
        self.content = content
        mends = list(annotations.mended(content, split.kind))
        # A file of LVIS's kind has COCO's entries too: read as the one or the other it is other
        # data, as it is if it is read as meant and not as written.
        digest.update(b"lvis" * (split.kind == "lvis") + b"mended" * bool(mends))
        self.digest = digest.hexdigest()
        of_image, of_category, of_annotation = _KEYS[split.kind]
        self._by_id: dict[int, dict] = {}
        self.images = self._entries(content["images"], "image", of_image)
        self._check_images()
        categories = self._entries(content["categories"], "category", of_category)
        self.categories = {c["id"]: c["name"] for c in sorted(categories, key=lambda c: c["id"])}
        self._check_categories(categories)
        if split.kind == "lvis":
            self._check_lvis(categories)
        found = self._entries(content["annotations"], "annotation", of_annotation)
        self.has_masks = any("segmentation" in a for a in found)
        self._check_annotations(found)
        for mend in mends:
            self._add_mend(mend)
        self._check_objects()

    def file(self, image: dict) -> str:
        """Where an image of the file lies in the folder."""
        return self.split.image_file(image)

    def add(
        self,
        kind: str,
        what: str,
        image: dict | None = None,
        annotation: dict | None = None,
        sort: str = "",
    ) -> None:
        number, file = (image["id"], self.file(image)) if image else (None, "")
        of = annotation["id"] if annotation else None
        self.defects.append(Defect(self.name, kind, what, number, file, of, sort))

    def refuse_errors(self) -> None:
        """Raises DefectError if there are any: the first, and how many more."""
        groups = [g for (severity, *_), g in grouped(self.defects).items() if severity == "error"]
        if not groups:
            return
        first = groups[0][0]
        more = [f"{len(groups[0]) - 1} more like it"] * (len(groups[0]) > 1)
        more += [f"{count} of another kind" for count in [sum(map(len, groups[1:]))] if count]
        tail = f"; {' and '.join(more)}, make check-data lists all" if more else ""
        at = f"{first.where}: " * bool(first.where)
        raise DefectError(f"{self.split.json_file}: {at}{first.what}{tail}")

    def notes(self) -> str:
        """How many of each kind there are that stop nothing, one line; "" if there are none."""
        groups = grouped(d for d in self.defects if d.severity == "note")
        told = [
            f"{len(group)} x {kind}: {group[0].consequence}"
            for (_, kind, _), group in groups.items()
        ]
        return f"{self.split.json_file}: {'; '.join(told)}" if told else ""

    def _add_mend(self, mend: annotations.Mend) -> None:
        entry = mend.entry
        number = entry.get("id") if mend.part == "images" else entry.get("image_id")
        image = self._by_id.get(number) if isinstance(number, int) else None
        of = entry if mend.part == "annotations" and "id" in entry else None
        what = mend.what if image or of else f"{mend.what} of {mend.part}"
        self.add(mend.kind, what, image, of, mend.sort)

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
                why = ", ".join(wrong)
                text = f"{what} at entry {i} ({of}) {why}"
                self.add("incomplete entry", text, image, sort=f"{what} {why}")
            else:
                whole.append(entry)
        return whole

    def _check_images(self) -> None:
        files: dict[str, dict] = {}
        for image in self.images:
            first = self._by_id.setdefault(image["id"], image)
            if first is not image:
                what = f"another has the id {image['id']} too, {self.file(first)}"
                self.add("duplicate image id", what, image)
            first = files.setdefault(self.file(image), image)
            if first is not image:
                self.add("file listed twice", f"its file is that of image {first['id']} too", image)
        if self.split.image_root:
            there = _files(Path(self.split.image_root), files)
            for image in self.images:
                name = self.file(image)
                if name not in there:
                    what = f"no file {os.path.join(self.split.image_root, name)}"
                    if "\\" in name:
                        what += ": in file names, folders end in /, not in \\"
                    self.add("missing image", what, image)

    def _check_categories(self, categories: list[dict]) -> None:
        for number, count in Counter(c["id"] for c in categories).items():
            if count > 1:
                self.add("duplicate category id", f"{count} categories have the id {number}")

    def _check_lvis(self, categories: list[dict]) -> None:
        kind = "against LVIS's rules"
        if sorted(self.categories) != list(range(1, len(categories) + 1)):
            self.add(kind, "LVIS numbers its categories 1, 2, 3, ..., this file does not")
        for category in categories:
            if category["frequency"] not in ("r", "c", "f"):
                what = f"category {category['id']} has frequency {category['frequency']!r}: "
                self.add(kind, what + "LVIS knows r, c and f")
        for image in self.images:
            for key in ("neg_category_ids", "not_exhaustive_category_ids"):
                unknown = [c for c in image[key] if not (type(c) is int and c in self.categories)]
                if unknown:
                    self.add(kind, f"its {key} has {unknown}, which are no categories", image)

    def _check_annotations(self, found: list[dict]) -> None:
        ids = set()
        self._usable, self._crowds, self._objects = Counter(), Counter(), Counter()
        for annotation in found:
            number, image = annotation["id"], self._by_id.get(annotation["image_id"])
            if number in ids:
                what = f"another has the id {number} too"
                self.add("duplicate annotation id", what, image, annotation)
            ids.add(number)
            if annotation["category_id"] not in self.categories:
                what = f"category {annotation['category_id']} is not listed"
                self.add("unknown category", what, image, annotation)
            if image is None:
                what = f"image {annotation['image_id']} is not listed, or incomplete"
                self.add("unknown image", what, None, annotation)
                continue
            if annotation.get("iscrowd"):
                self._crowds[image["id"]] += 1
            else:
                self._usable[image["id"]] += 1
                self._objects[annotation["category_id"]] += 1
            for kind, what in self._annotation_defects(annotation, image):
                self.add(kind, what, image, annotation)

    def _check_objects(self) -> None:
        """What there is to find."""
        if not self._objects and not any(d.severity == "error" for d in self.defects):
            self.add("no objects", "all annotations are crowd regions: there is nothing to find")
        for number, image in self._by_id.items():
            if not self._usable[number]:
                if self._crowds[number]:
                    what = f"{self._crowds[number]} crowds"
                    self.add("image with crowds only", what, image)
                else:
                    self.add("image without annotations", "nothing to find", image)
        for category, name in self.categories.items():
            if not self._objects[category]:
                self.add("category without objects", f"category {category}, {name!r}")

    def _annotation_defects(self, annotation: dict, image: dict) -> Iterator[tuple[str, str]]:
        """Kind and description of what is wrong with an annotation of a listed image."""
        size, kind = (image["height"], image["width"]), self.split.kind
        if kind == "coco" and annotation.get("ignore"):
            yield "marked ignore", "'ignore' is no word of COCO's: say 'iscrowd', or leave it out"
        if annotation["id"] == 0 and self.name == "val":
            yield "annotation id 0", "its id is 0"
        if kind == "lvis" and not annotation["area"] > 0:
            yield "area not above 0", f"area {annotation['area']}"
        values = annotation["bbox"]
        inside = None
        if not are_finite(values) or len(values) != 4:
            yield "broken box", f"box {reprlib.repr(values)} is not x, y, width, height"
        elif min(values[2:]) < 0:
            yield "box of negative size", f"box {values}: its width or height is below 0"
        elif min(values[2:]) == 0:
            yield "box without area", f"box {values}"
        else:
            x, y, width, height = values
            box = x, y, x + width, y + height
            inside = shapes.clip(box, size)
            if shapes.is_empty(inside):
                yield "box outside the image", f"box {values}, image of {pixels(size)}"
            elif shapes.distance(box, inside) > _SLACK:
                yield "box partly outside", f"box {values}, image of {pixels(size)}"

        segmentation = annotation.get("segmentation")
        if segmentation is None:
            if kind == "lvis":
                yield "against LVIS's rules", "it has no segmentation"
            elif self.has_masks:
                what = "no segmentation, where others have one: give it to all or to none"
                yield "some without segmentation", what
            return
        if kind == "lvis" and not isinstance(segmentation, list):
            yield "against LVIS's rules", "segmentation is no list of polygons: LVIS has no other"
            return
        bounds, wrong = (shapes.polygons if isinstance(segmentation, list) else shapes.run_lengths)(
            segmentation, size
        )
        yield from wrong
        if bounds is None or inside is None or shapes.is_empty(inside):
            return
        bounds = shapes.clip(bounds, size)  # a mask may reach over the image where its box does not
        if shapes.distance(inside, bounds) > _TOLERANCE:
            x, y, x1, y1 = bounds
            what = f"box {values}, mask's {[round(v, 2) for v in (x, y, x1 - x, y1 - y)]}"
            far = shapes.iou(inside, bounds) < 0.5
            if shapes.distance(values, bounds) <= _TOLERANCE:
                yield (
                    "box by its corners",
                    f"{what}: it fits as x0, y0, x1, y1, but COCO's is x, y, width, height",
                )
            else:
                yield "box far from its mask" if far else "box differs from its mask", what


def _files(root: Path, names: Iterable[str]) -> set[str]:
    """Which of the names are files of the folder."""
    folders = {os.path.dirname(name) for name in names}
    listed = {
        os.path.join(folder, file)
        for folder in folders
        if (root / folder).is_dir()
        for file in os.listdir(root / folder)
    }
    return {name for name in names if name in listed or (root / name).is_file()}


def check_pair(train: AnnotationFile, val: AnnotationFile) -> None:
    """Find what is wrong between the two, as defects of the second."""
    for number in sorted(train.categories.keys() | val.categories.keys()):
        names = [file.categories.get(number) for file in (train, val)]
        if names[0] != names[1]:
            of_train, of_val = ("missing" if name is None else repr(name) for name in names)
            what = f"category {number} is {of_val}, in {train.split.json_file} {of_train}"
            val.add("different categories", what)


def pixels(size: tuple[int, int]) -> str:
    """ "width x height" of (height, width)."""
    height, width = size
    return f"{width} x {height}"
