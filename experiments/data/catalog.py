"""Which images a run reads: the embedded mini set, COCO 2017, LVIS v1, or the user's own set."""

import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_lvis_json, register_coco_instances

from ..errors import UserError, unknown
from . import mini, mini_lvis

ROOT = Path(__file__).resolve().parents[2]
# What detectron2 calls the published sets, and what has to be in $DETECTRON2_DATASETS for them.
_PUBLISHED = {
    "coco": (
        "COCO 2017",
        "coco_2017",
        "coco/ with annotations/instances_{train,val}2017.json, train2017/*.jpg, val2017/*.jpg",
    ),
    "lvis": (
        "LVIS v1",
        "lvis_v1",
        "lvis/ with lvis_v1_{train,val}.json, and coco/ with train2017/*.jpg, val2017/*.jpg",
    ),
}
# Validation splits by the names that configs have for them.
_VAL_SPLITS = {
    "mini_val": ("mini", "coco"),
    "mini_lvis_val": ("mini", "lvis"),
    "coco_2017_val": ("coco", "coco"),
    "lvis_v1_val": ("coco", "lvis"),
}


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

    def register(self) -> str:
        """Make it known to detectron2, in this process; returns its name."""
        if self.name in DatasetCatalog:
            return self.name
        if self.kind == "coco":
            register_coco_instances(self.name, {}, self.json_file, self.image_root)
        else:
            root = os.path.join(self.image_root, "")  # the loader adds "train2017" to it
            DatasetCatalog.register(self.name, lambda: load_lvis_json(self.json_file, root))
            MetadataCatalog.get(self.name).set(
                json_file=self.json_file, image_root=root, evaluator_type="lvis"
            )
        return self.name


@dataclass(frozen=True)
class Data:
    """What a run trains and evaluates on."""

    train: Split
    val: Split
    images: tuple[int, int]  # of train and val
    categories: tuple[str, ...]
    image_counts: tuple[int, ...]  # of each category, training images with objects of it
    has_rle: bool  # whether objects to train on have masks as run lengths, not polygons
    digest: str  # of both annotation files (images are known by their names in them)

    @classmethod
    def of(cls, train: Split, val: Split) -> "Data":
        """Read and check both annotation files.

        Raises:
            UserError: a file or folder is missing, or the json is broken or not of its kind.
        """
        checked = [read_split(split) for split in (train, val)]
        if checked[0].categories != checked[1].categories:
            raise UserError(
                f"{train.json_file} and {val.json_file} have different categories: "
                "training and validation need the same ids and names"
            )
        digest = hashlib.sha256("".join(c.digest for c in checked).encode()).hexdigest()
        return cls(
            train,
            val,
            (checked[0].images, checked[1].images),
            tuple(checked[0].categories.values()),
            checked[0].image_counts,
            checked[0].has_rle,
            digest[:16],
        )


@dataclass(frozen=True)
class Checked:
    """What is known of a split after reading its annotation file."""

    images: int
    categories: dict[int, str]  # id -> name, sorted by id
    image_counts: tuple[int, ...]  # of each category, in that order
    has_rle: bool
    digest: str


def read_parts(split: Split) -> tuple[dict[str, list], str]:
    """What an annotation file holds, its lists unread, and its digest.

    Raises:
        UserError: the file or the folder of images cannot be read, or it is no JSON, or without
            images, annotations or categories.
    """
    where = split.json_file
    try:
        content = Path(where).read_bytes()
        os.listdir(split.image_root)
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
    try:
        parts = json.loads(content)
    except ValueError as error:
        raise UserError(f"{where} is no valid JSON: {error}") from error
    for part in ("images", "annotations", "categories"):
        if not isinstance(parts, dict) or not isinstance(parts.get(part), list) or not parts[part]:
            raise UserError(f"{_no_set(split)}: it has no list of {part}")
    # A file of LVIS's kind has COCO's entries too: read as the one or the other it is other data.
    return parts, hashlib.sha256(content + b"lvis" * (split.kind == "lvis")).hexdigest()


def _no_set(split: Split) -> str:
    return f"{split.json_file} is no {split.kind.upper()} detection set"


def read_split(split: Split) -> Checked:
    """Read and check an annotation file: its structure, and that every image is there.

    Raises:
        UserError: the first thing that is wrong.
    """
    where = split.json_file
    parts, digest = read_parts(split)
    try:
        categories = {
            c["id"]: c["name"] for c in sorted(parts["categories"], key=lambda c: c["id"])
        }
        if len(categories) < len(parts["categories"]):
            raise UserError(f"{where}: a category id occurs twice: ids must be unique")
        if split.kind == "lvis":
            _check_lvis(where, parts, categories)
        _check_images(split, parts["images"])
        ids = {image["id"] for image in parts["images"]}
        _check_annotations(split, parts["annotations"], ids, categories)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{_no_set(split)}: an entry lacks {error}") from error
    objects = [a for a in parts["annotations"] if not a.get("iscrowd")]
    pairs = {(a["image_id"], a["category_id"]) for a in objects}
    counts = Counter(category for _, category in pairs)
    return Checked(
        len(parts["images"]),
        categories,
        tuple(counts[category] for category in categories),
        any(isinstance(a["segmentation"], dict) for a in objects),
        digest,
    )


def _check_images(split: Split, images: list[dict]) -> None:
    root = Path(split.image_root)
    names = [split.image_file(image) for image in images]
    folders = {os.path.dirname(name) for name in names}
    files = {
        os.path.join(folder, file)
        for folder in folders
        if (root / folder).is_dir()
        for file in os.listdir(root / folder)
    }
    seen = set()
    for image, name in zip(images, names, strict=True):
        number, _, _ = (image[key] for key in ("id", "height", "width"))
        if number in seen:
            raise UserError(
                f"{split.json_file}: image id {number} occurs twice: ids must be unique"
            )
        seen.add(number)
        if name not in files and not (root / name).is_file():
            raise UserError(f"{split.json_file} lists {name}, which is not in {split.image_root}")


def _check_annotations(
    split: Split, annotations: list[dict], images: set, categories: dict
) -> None:
    where, seen = split.json_file, set()
    keys = ["id", "image_id", "category_id", "bbox", "area"] + ["iscrowd"] * (split.kind == "coco")
    for annotation in annotations:
        number, image, category, *_ = (annotation[key] for key in keys)
        if number in seen:
            raise UserError(f"{where}: annotation id {number} occurs twice: ids must be unique")
        seen.add(number)
        if image not in images:
            raise UserError(f"{where}: annotation {number} is of an image that is not listed")
        if category not in categories:
            raise UserError(f"{where}: annotation {number} is of a category that is not listed")
        if split.kind == "coco" and annotation.get("ignore"):
            raise UserError(
                f"{where}: annotation {number} is marked 'ignore', which COCO's format has not: "
                "say 'iscrowd', or leave it out"
            )
        if not annotation.get("segmentation"):
            raise UserError(f"{where}: annotation {number} has no segmentation, masks need one")
        if split.kind == "lvis" and not are_polygons(annotation["segmentation"]):
            raise UserError(
                f"{where}: annotation {number} has a segmentation that is no list of polygons of "
                "three corners or more, x and y each: LVIS has no other masks"
            )


def are_polygons(segmentation: Any) -> bool:
    """Whether it is a list of polygons of three corners or more, x and y each."""
    return isinstance(segmentation, list) and all(
        isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
        for polygon in segmentation
    )


def _check_lvis(where: str, lvis: dict, categories: dict) -> None:
    """What LVIS's loader and scores need beside what COCO has."""
    if list(categories) != list(range(1, len(categories) + 1)):
        raise UserError(f"{where}: LVIS numbers its categories 1, 2, 3, ..., this file does not")
    for category in lvis["categories"]:
        if category["frequency"] not in ("r", "c", "f"):
            raise UserError(
                f"{where}: category {category['id']} has frequency {category['frequency']!r}: "
                "LVIS knows r, c and f"
            )
    for image in lvis["images"]:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            if not set(image[key]) <= categories.keys():
                raise UserError(f"{where}: image {image['id']} has unknown {key}: {image[key]}")


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


def prepare(
    scale: str, train: str | None = None, val: str | None = None, dataset: str = "coco"
) -> Data:
    """The data of a scale, or the user's own.

    Args:
        scale: "mini" makes its set on first use; "coco" looks where detectron2 does, in
            $DETECTRON2_DATASETS, or ./datasets.
        train, val: both as `parse_split` reads them: a set of the user's instead.
        dataset: "coco", or "lvis" for LVIS v1, or the mini set in its format.

    Raises:
        UserError: another name, or it is not there or broken, with where it was looked for.
    """
    return Data.of(*find(scale, train, val, dataset))


def find(
    scale: str, train: str | None = None, val: str | None = None, dataset: str = "coco"
) -> tuple[Split, Split]:
    """The splits that `prepare` reads, for training and validation, unread.

    Raises:
        UserError: another name, or they are not there.
    """
    if train or val:
        if not (train and val):
            raise UserError(
                "--dataset and --val go together: give annotations.json,images/ for each"
            )
        return parse_split(train), parse_split(val)
    if dataset not in _PUBLISHED:
        raise unknown("kind of data set", dataset, _PUBLISHED)
    of_scale = _mini_split if scale == "mini" else _published_split
    return of_scale(dataset, "train"), of_scale(dataset, "val")


def test_split(dataset: str) -> Split:
    """The split that a config names in `dataloader.test.dataset`.

    Args:
        dataset: "mini_val", "mini_lvis_val", "coco_2017_val", "lvis_v1_val", or what `parse_split`
            reads, as runs write it into their config.yaml.

    Raises:
        UserError: another name, or the data are not there.
    """
    if "," in dataset:
        return parse_split(dataset)
    if dataset not in _VAL_SPLITS:
        raise unknown("data set", dataset, _VAL_SPLITS)
    scale, kind = _VAL_SPLITS[dataset]
    return _mini_split(kind, "val") if scale == "mini" else _published_split(kind, "val")


def _mini_split(kind: str, split: str) -> Split:
    """ "train" or "val" of the mini set, made now if it is not there."""
    datasets = ROOT / "datasets"
    try:
        images = mini.ensure(datasets)
        if kind == "coco":
            return Split(str(images / f"annotations/instances_{split}.json"), str(images / split))
        return Split(str(mini_lvis.ensure(datasets) / f"lvis_{split}.json"), str(images), kind)
    except OSError as error:
        raise UserError(
            f"cannot make the mini set in {datasets}: {error.strerror}; "
            "it needs 80 MB and write permission"
        ) from error


def _published_split(kind: str, split: str) -> Split:
    """ "train" or "val" of COCO 2017 or LVIS v1, as detectron2 finds it.

    Raises:
        UserError: not there, with the paths looked at and the layout it should have.
    """
    title, name, layout = _PUBLISHED[kind]
    metadata = MetadataCatalog.get(f"{name}_{split}")
    json_file, image_root = (os.path.abspath(metadata.get(k)) for k in ("json_file", "image_root"))
    if not os.path.isfile(json_file) or not os.path.isdir(image_root):
        raise UserError(
            f"no {title} at {json_file} with images in {image_root}: "
            f"set DETECTRON2_DATASETS to the folder that holds {layout}"
        )
    return Split(json_file, image_root, kind)
