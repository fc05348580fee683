"""Which images a run reads: the embedded mini set, COCO 2017, or the user's COCO-format set."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from ..errors import UserError, unknown
from . import mini

ROOT = Path(__file__).resolve().parents[2]
_COCO_LAYOUT = "annotations/instances_{train,val}2017.json, train2017/*.jpg, val2017/*.jpg"


@dataclass(frozen=True)
class Split:
    """A COCO-format annotation file and the folder of its images."""

    json_file: str
    image_root: str

    @property
    def name(self) -> str:
        """What detectron2's catalog calls it: unique per file."""
        return (
            "split_"
            + hashlib.sha256(f"{self.json_file}:{self.image_root}".encode()).hexdigest()[:12]
        )

    def register(self) -> str:
        """Make it known to detectron2, in this process; returns its name."""
        if self.name not in DatasetCatalog:
            register_coco_instances(self.name, {}, self.json_file, self.image_root)
        return self.name


@dataclass(frozen=True)
class Data:
    """What a run trains and evaluates on."""

    train: Split
    val: Split
    categories: tuple[str, ...]
    has_rle: bool  # whether objects to train on have masks as run lengths, not polygons
    digest: str  # of both annotation files (images are known by their names in them)

    @classmethod
    def of(cls, train: Split, val: Split) -> "Data":
        """Read and check both annotation files.

        Raises:
            UserError: a file or folder is missing, or the json is broken or no COCO set.
        """
        checked = [read_split(split) for split in (train, val)]
        if checked[0].categories != checked[1].categories:
            raise UserError(
                f"{train.json_file} and {val.json_file} have different categories: "
                "training and validation need the same ids and names"
            )
        digest = hashlib.sha256("".join(c.digest for c in checked).encode()).hexdigest()
        return cls(
            train, val, tuple(checked[0].categories.values()), checked[0].has_rle, digest[:16]
        )


@dataclass(frozen=True)
class Checked:
    """What is known of a split after reading its annotation file."""

    categories: dict[int, str]  # id -> name, sorted by id
    has_rle: bool
    digest: str


def read_split(split: Split) -> Checked:
    """Read and check an annotation file: its structure, and that every image is there.

    Raises:
        UserError: the first thing that is wrong.
    """
    where = split.json_file
    try:
        content = Path(where).read_bytes()
        files = set(os.listdir(split.image_root))
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
    try:
        coco = json.loads(content)
    except ValueError as error:
        raise UserError(f"{where} is no valid JSON: {error}") from error
    for part in ("images", "annotations", "categories"):
        if not isinstance(coco, dict) or not isinstance(coco.get(part), list) or not coco[part]:
            raise UserError(f"{where} is no COCO detection set: it has no list of {part}")
    try:
        categories = {c["id"]: c["name"] for c in sorted(coco["categories"], key=lambda c: c["id"])}
        _check_images(split, coco["images"], files)
        ids = {image["id"] for image in coco["images"]}
        has_rle = _check_annotations(where, coco["annotations"], ids, categories)
    except (KeyError, TypeError) as error:
        raise UserError(f"{where} is no COCO detection set: an entry lacks {error}") from error
    return Checked(categories, has_rle, hashlib.sha256(content).hexdigest())


def _check_images(split: Split, images: list[dict], files: set[str]) -> None:
    seen = set()
    for image in images:
        name, number, _, _ = (image[key] for key in ("file_name", "id", "height", "width"))
        if number in seen:
            raise UserError(
                f"{split.json_file}: image id {number} occurs twice: ids must be unique"
            )
        seen.add(number)
        if name not in files and not (Path(split.image_root) / name).is_file():
            raise UserError(f"{split.json_file} lists {name}, which is not in {split.image_root}")


def _check_annotations(where: str, annotations: list[dict], images: set, categories: dict) -> bool:
    """Whether an object, not a crowd, has its mask as run lengths."""
    seen, has_rle = set(), False
    for annotation in annotations:
        number, image, category, _, _, crowd = (
            annotation[key] for key in ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
        )
        if number in seen:
            raise UserError(f"{where}: annotation id {number} occurs twice: ids must be unique")
        seen.add(number)
        if image not in images:
            raise UserError(f"{where}: annotation {number} is of an image that is not listed")
        if category not in categories:
            raise UserError(f"{where}: annotation {number} is of a category that is not listed")
        if not annotation.get("segmentation"):
            raise UserError(f"{where}: annotation {number} has no segmentation, masks need one")
        has_rle |= not crowd and isinstance(annotation["segmentation"], dict)
    return has_rle


def parse_split(text: str) -> Split:
    """ "train.json,images/" as a split.

    Raises:
        UserError: not of that form.
    """
    json_file, comma, image_root = text.partition(",")
    if not comma:
        raise UserError(f"data set {text!r} is not of the form annotations.json,images/")
    return Split(os.path.abspath(json_file), os.path.abspath(image_root))


def prepare(scale: str, train: str | None = None, val: str | None = None) -> Data:
    """The data of a scale, or the user's own.

    Args:
        scale: "mini" makes its set on first use; "coco" looks where detectron2 does, in
            $DETECTRON2_DATASETS/coco, or ./datasets/coco.
        train, val: both as "annotations.json,images/": a set of the user's instead.

    Raises:
        UserError: it is not there or broken, with where it was looked for.
    """
    if train or val:
        if not (train and val):
            raise UserError(
                "--dataset and --val go together: give annotations.json,images/ for each"
            )
        return Data.of(parse_split(train), parse_split(val))
    if scale == "mini":
        try:
            root = mini.ensure(ROOT / "datasets")
        except OSError as error:
            raise UserError(
                f"cannot make the mini set in {ROOT / 'datasets'}: {error.strerror}; "
                "it needs 80 MB and write permission"
            ) from error
        splits = {
            s: Split(str(root / f"annotations/instances_{s}.json"), str(root / s))
            for s in mini.IMAGES
        }
        return Data.of(splits["train"], splits["val"])
    return Data.of(coco_split("train"), coco_split("val"))


def test_split(dataset: str) -> Split:
    """The split that a config names in `dataloader.test.dataset`.

    Args:
        dataset: "mini_val", "coco_2017_val", or "annotations.json,images/" as runs write it into
            their config.yaml.

    Raises:
        UserError: another name, or the data are not there.
    """
    if "," in dataset:
        return parse_split(dataset)
    if dataset == "mini_val":
        return prepare("mini").val
    if dataset == "coco_2017_val":
        return coco_split("val")
    raise unknown("data set", dataset, ["mini_val", "coco_2017_val"])


def coco_split(split: str) -> Split:
    """COCO 2017 "train" or "val" as detectron2 finds it.

    Raises:
        UserError: not there, with the path looked at and the layout it should have.
    """
    metadata = MetadataCatalog.get(f"coco_2017_{split}")
    if not Path(metadata.json_file).is_file() or not Path(metadata.image_root).is_dir():
        looked = Path(metadata.image_root).parent.absolute()
        raise UserError(
            f"no COCO 2017 at {looked}: set DETECTRON2_DATASETS to the folder that holds coco/ "
            f"with {_COCO_LAYOUT}"
        )
    return Split(os.path.abspath(metadata.json_file), os.path.abspath(metadata.image_root))
