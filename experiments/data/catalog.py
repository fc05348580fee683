"""Which images a run reads: the embedded mini set, COCO 2017, LVIS v1, or the user's own set."""

import hashlib
import os
from collections import Counter
from dataclasses import dataclass

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from pycocotools import mask as masks

from .. import ROOT
from ..errors import UserError, unknown
from ..scales import SCALES
from . import defects, subsets
from .annotations import Split, parse_split, set_name
from .defects import AnnotationFile
from .mini import detection as mini
from .mini import lvis as mini_lvis
from .subsets import WHOLE, Shares

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
_OF_LVIS = ("neg_category_ids", "not_exhaustive_category_ids")  # keys of its images
_OF_OBJECTS = ("iscrowd", "bbox", "segmentation")  # keys that are handed on as they are
# Validation splits by the names that configs have for them.
_VAL_SPLITS = {
    "mini_val": ("mini", "coco"),
    "mini_lvis_val": ("mini", "lvis"),
    "coco_2017_val": ("coco", "coco"),
    "lvis_v1_val": ("coco", "lvis"),
}


@dataclass(frozen=True)
class Data:
    """What a run trains and evaluates on."""

    name: str  # of a set of the user's own, see `set_name`; "": the suite's
    train: Split
    val: Split
    images: tuple[int, int]  # of train and val
    categories: tuple[str, ...]
    image_counts: tuple[int, ...]  # of each category, training images with objects of it
    has_rle: bool  # whether objects to train on have masks as run lengths, not polygons
    digest: str  # of both annotation files (images are known by their names in them)
    has_masks: bool = True  # whether all objects, to train on and to find, have one
    sides: tuple[int, int] = (0, 0)  # the shortest and the longest side of all images, pixels
    notes: tuple[str, ...] = ()  # what is odd in a file and stops nothing, a line each

    @classmethod
    def of(cls, train: Split, val: Split, name: str = "") -> "Data":
        """Read and check both annotation files.

        Raises:
            UserError: a file or folder is missing, or a file has what `kinds_of_defects.KINDS`
                calls an error: the first.
        """
        files = [AnnotationFile(n, s) for n, s in (("train", train), ("val", val))]
        defects.check_pair(*files)
        checked = [_checked(file) for file in files]
        digest = hashlib.sha256("".join(c.digest for c in checked).encode()).hexdigest()
        return cls(
            name,
            train,
            val,
            (checked[0].images, checked[1].images),
            tuple(checked[0].categories.values()),
            checked[0].image_counts,
            checked[0].has_rle,
            digest[:16],
            all(file.has_masks for file in files),
            (min(c.sides[0] for c in checked), max(c.sides[1] for c in checked)),
            tuple(file.notes for file in checked if file.notes),
        )


@dataclass(frozen=True)
class Checked:
    """What is known of a split after reading its annotation file."""

    images: int
    categories: dict[int, str]  # id -> name, sorted by id
    image_counts: tuple[int, ...]  # of each category, in that order
    has_rle: bool
    sides: tuple[int, int]  # the shortest and the longest of all images, pixels
    digest: str
    notes: str  # what is odd in it and stops nothing, one line, "" if nothing is


def read_split(split: Split) -> Checked:
    """Read and check a validation split: its structure, and that every image is there.

    Raises:
        UserError: the first thing that is wrong.
    """
    return _checked(AnnotationFile("val", split))


def _checked(file: AnnotationFile) -> Checked:
    file.refuse_errors()
    annotations = file.content["annotations"]
    objects = [a for a in annotations if not a.get("iscrowd")]
    pairs = {(a["image_id"], a["category_id"]) for a in objects}
    counts = Counter(category for _, category in pairs)
    sides = [image[side] for image in file.images for side in ("height", "width")]
    return Checked(
        len(file.images),
        file.categories,
        tuple(counts[category] for category in file.categories),
        any(isinstance(a.get("segmentation"), dict) for a in objects),
        (min(sides), max(sides)),
        file.digest,
        file.notes(),
    )


def register(split: Split) -> str:
    """As `Split.register`."""
    if split.name not in DatasetCatalog:
        DatasetCatalog.register(split.name, lambda: dicts(split))
    return split.name


def dicts(split: Split) -> list[dict]:
    """A split in detectron2's form: images by id, the objects of each in the file's order."""
    content = split.read()
    categories = sorted(content["categories"], key=lambda c: c["id"])
    if split.kind == "coco":  # it prints a table of them
        MetadataCatalog.pop(split.name, None)  # of the file as it was
        MetadataCatalog.get(split.name).thing_classes = [c["name"] for c in categories]
    index = {category["id"]: i for i, category in enumerate(categories)}
    entries = {
        image["id"]: dict(
            file_name=os.path.join(split.image_root, split.image_file(image)),
            height=image["height"],
            width=image["width"],
            image_id=image["id"],
            annotations=[],
            **{key: image[key] for key in _OF_LVIS if split.kind == "lvis"},
        )
        for image in sorted(content["images"], key=lambda i: i["id"])
    }
    for annotation in content.get("annotations", ()):  # COCO's test sets have none
        found = {key: annotation[key] for key in _OF_OBJECTS if key in annotation}
        found |= dict(bbox_mode=BoxMode.XYWH_ABS, category_id=index[annotation["category_id"]])
        segmentation = found.get("segmentation")
        if isinstance(segmentation, dict) and isinstance(segmentation["counts"], list):
            found["segmentation"] = masks.frPyObjects(segmentation, *segmentation["size"])
        entries[annotation["image_id"]]["annotations"].append(found)
    return list(entries.values())


def prepare(
    scale: str,
    train: str | None = None,
    val: str | None = None,
    dataset: str = "coco",
    shares: Shares = WHOLE,
) -> Data:
    """The data of a scale, or the user's own.

    Args:
        scale: "mini" makes its set on first use; the others look where detectron2 does, in
            $DETECTRON2_DATASETS, or ./datasets.
        train, val: both as `parse_split` reads them: a set of the user's instead.
        dataset: "coco", or "lvis" for LVIS v1, or the mini set in its format.
        shares: of the set, whichever it is.

    Raises:
        UserError: another name, or it is not there or broken, with where it was looked for.
    """
    name = set_name(train, val) if train and val else ""
    return Data.of(*find(scale, train, val, dataset, shares), name)


def find(
    scale: str,
    train: str | None = None,
    val: str | None = None,
    dataset: str = "coco",
    shares: Shares = WHOLE,
) -> tuple[Split, Split]:
    """The splits that `prepare` reads, for training and validation; unread, if they are whole.

    Raises:
        UserError: another name, or they are not there.
    """
    if train or val:
        if not (train and val):
            raise UserError(
                "--dataset and --val go together: give annotations.json,images/ for each"
            )
        whole = parse_split(train), parse_split(val)
    elif dataset not in _PUBLISHED:
        raise unknown("kind of data set", dataset, _PUBLISHED)
    else:
        of_scale = _mini_split if SCALES[scale].embedded else _published_split
        whole = of_scale(dataset, "train"), of_scale(dataset, "val")
    folder = ROOT / "datasets" / "shares"
    return (
        subsets.take(whole[0], shares.train, shares.seed, folder),
        subsets.take(whole[1], shares.val, shares.seed, folder),
    )


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
