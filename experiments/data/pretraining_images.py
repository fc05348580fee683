"""Which images a pre-training reads: the embedded ones, ImageNet, or any folder of images."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from .. import ROOT
from ..errors import UserError
from ..json_files import write_json
from .images import load
from .mini import classes

_LAYOUT = "train/<category>/*.jpg, and the same under val/ for validation"


@dataclass(frozen=True)
class Images:
    """Folders of images for training and, where there is one, for validation.

    Args:
        train, val: folders, absolute; `val` may be "".
        counts: images in each.
        categories: names of the folders that the images lie in; none: they lie in no folders by
            category, which is enough where no labels are needed.
        digest: of names and sizes of all files.
    """

    train: str
    val: str
    counts: tuple[int, int]
    categories: tuple[str, ...]
    digest: str

    def write_list(self, path: Path) -> None:
        """Write the names of all files, unless it is done, for `entries`: to look for ImageNet's
        1.3 million takes minutes on a cluster's file system, and longer for many processes."""
        if not path.is_file():
            roots = dict(train=self.train, val=self.val)
            found = {split: _files(root) if root else [] for split, root in roots.items()}
            write_json(path, {split: [name for name, _ in files] for split, files in found.items()})

    def entries(self, split: str, listed: Path | None = None) -> list[dict[str, Any]]:
        """What `ImageMapper` reads, for "train" or "val": file_name, image_id, label.

        Args:
            listed: what `write_list` wrote; None: the files are looked for.
        """
        root = getattr(self, split)
        names = json.loads(listed.read_text())[split] if listed else [n for n, _ in _files(root)]
        labels = {name: label for label, name in enumerate(self.categories)}
        return [
            dict(
                file_name=os.path.join(root, name),
                image_id=name,
                label=labels[name.split(os.sep)[0]] if labels else -1,
            )
            for name in names
        ]


class ImageMapper:
    """Reads an image file and transforms it.

    Args:
        transforms: of torchvision's `transforms.v2`, one after the other, on uint8 (3, H, W) RGB.
    """

    def __init__(self, transforms: Sequence[Callable[[torch.Tensor], torch.Tensor]]):
        self.transforms = v2.Compose(list(transforms))

    def __call__(self, entry: dict[str, Any]) -> dict[str, Any]:
        """An entry of `Images` -> image (uint8 (3, H, W)), label, image_id."""
        image = self.transforms(v2.functional.pil_to_tensor(load(entry["file_name"])))
        return dict(image=image, label=entry["label"], image_id=entry["image_id"])


def prepare(scale: str, folder: str | None = None) -> Images:
    """The images of a scale, or the user's own.

    Args:
        scale: "mini" makes its images on first use; others look for ImageNet-1k in
            $DETECTRON2_DATASETS/imagenet.
        folder: another, in ImageNet's layout; or with images anywhere in it, without labels.

    Raises:
        UserError: there is no such folder, or no image in it; categories of training and
            validation differ.
    """
    if folder:
        return _images(Path(folder).absolute())
    if scale == "mini":
        datasets = ROOT / "datasets"
        try:
            return _images(classes.ensure(datasets))
        except OSError as error:
            raise UserError(
                f"cannot make the mini images in {datasets}: {error.strerror}; "
                "they need 140 MB and write permission"
            ) from error
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).absolute() / "imagenet"
    if not (root / "train").is_dir():
        raise UserError(
            f"no ImageNet at {root}: set DETECTRON2_DATASETS to the folder that holds imagenet/ "
            f"with {_LAYOUT}, or give any folder of images with IMAGES="
        )
    return _images(root)


def _images(root: Path) -> Images:
    if not root.is_dir():
        raise UserError(f"no folder at {root}: give one with {_LAYOUT}, or with images in it")
    train = root / "train" if (root / "train").is_dir() else root
    val = root / "val" if train != root and (root / "val").is_dir() else None
    files = [_files(str(train)), _files(str(val)) if val else []]
    if not files[0]:
        raise UserError(f"no images in {train}: {', '.join(IMG_EXTENSIONS)} are looked for")
    of_train, of_val = (sorted({_category(name) for name, _ in found}) for found in files)
    labelled = "" not in of_train and len(of_train) > 1
    if labelled and "" in of_val:
        raise UserError(f"images lie directly in {val}: put them into {_LAYOUT}")
    if labelled and not set(of_val) <= set(of_train):
        extra = sorted(set(of_val) - set(of_train))[0]
        raise UserError(f"{val} has a category {extra!r} that {train} has not: make them the same")
    return Images(
        str(train),
        str(val) if files[1] else "",
        (len(files[0]), len(files[1])),
        tuple(of_train) if labelled else (),
        hashlib.sha256(repr(files).encode()).hexdigest()[:16],
    )


def _category(name: str) -> str:
    """The folder that a file's relative name starts with, "" if it is in none."""
    folder, separator, _ = name.partition(os.sep)
    return folder if separator else ""


def _files(root: str) -> list[tuple[str, int]]:
    """Relative name and size of each image under a folder, sorted."""
    found = []
    for folder, _, names in os.walk(root, followlinks=True):
        for name in names:
            if name.lower().endswith(IMG_EXTENSIONS):
                path = os.path.join(folder, name)
                found.append((os.path.relpath(path, root), os.stat(path).st_size))
    return sorted(found)
