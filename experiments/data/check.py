"""Every defect of a data set: its annotation files, and each image read whole, once.

What is wrong in an annotation file is found by `experiments.data.defects`, for a run's start too;
what is wrong with images is found here alone.
"""

import csv
import hashlib
import itertools
import os
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from torch.utils.data import DataLoader, Dataset

from ..errors import UserError
from . import images, progress
from .annotations import Split
from .defects import SHOWN, AnnotationFile, check_pair, pixels
from .kinds_of_defects import KINDS, Defect, grouped

_AT_ONCE = 8  # images that a process hands over together


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
        files.append(AnnotationFile(name, split))
    if not all(file.has_masks for file in files):
        console.print("no segmentation: detectors are trained for boxes only", highlight=False)
    if len(files) == 2:
        check_pair(*files)
    _read_images(files, jobs or len(os.sched_getaffinity(0)), console)
    count = sum(len(file.images) for file in files)
    console.print(f"{count} images in {time.perf_counter() - start:.1f} s", highlight=False)
    defects = [defect for file in files for defect in file.defects]
    _write(defects, path)
    _show(defects, path, console)
    return int(any(defect.severity == "error" for defect in defects))


class _Images(Dataset):
    """Reads image files: (height, width), digest of the file, and kind and text of a defect."""

    def __init__(self, paths: list[str]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[tuple[int, int], str, str, str]:
        path = Path(self.paths[index])
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            return images.read(path).shape[:2], digest, "", ""
        except (UserError, OSError) as error:
            return (0, 0), "", "unreadable image", str(error)


def _read_images(files: list[AnnotationFile], jobs: int, console: Console) -> None:
    """Find what is wrong with the images of all files."""
    gone = {(d.split, d.image_id) for f in files for d in f.defects if d.kind == "missing image"}
    entries = [
        (file, image)
        for file in files
        for image in file.images
        if (file.name, image["id"]) not in gone
    ]
    paths = [os.path.join(file.split.image_root, file.file(image)) for file, image in entries]
    loader = DataLoader(
        _Images(paths), _AT_ONCE, num_workers=min(jobs, len(paths)), collate_fn=list
    )
    seen: dict[str, tuple[AnnotationFile, dict]] = {}
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
    file: AnnotationFile,
    image: dict,
    size: tuple[int, int],
    digest: str,
    kind: str,
    what: str,
    seen: dict[str, tuple[AnnotationFile, dict]],
) -> None:
    if kind:
        file.add(kind, what, image)
        return
    listed = image["height"], image["width"]
    if size != listed:
        what = f"the file has {pixels(size)} as it is shown, the json says {pixels(listed)}"
        file.add("wrong size", what, image)
    first, other = seen.setdefault(digest, (file, image))
    if first is not file:
        what = f"the same file as {first.name} image {other['id']} ({first.file(other)})"
        file.add("in train and val", what, image)
    elif file.file(other) != file.file(image):
        what = f"the same file as image {other['id']} ({file.file(other)})"
        file.add("same image twice", what, image)


def _show(defects: list[Defect], path: Path, console: Console) -> None:
    """By kind, and counts at the end; errors after the notes, where the eye is."""

    def say(text: str) -> None:
        text = text.encode(errors="backslashreplace").decode()
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    groups = grouped(defects)
    kinds = list(KINDS)

    def order(key: tuple[str, str, str]) -> tuple:
        severity, _, split = key
        return severity == "error", kinds.index(groups[key][0].kind), split

    for key in sorted(groups, key=order):
        severity, kind, split = key
        group = groups[key]
        say(f"{severity}: {kind}, {len(group)} in {split}: {group[0].consequence}")
        for defect in group[:SHOWN]:
            say(f"  {defect}")
        if len(group) > SHOWN:
            say(f"  ... and {len(group) - SHOWN} more, see {path}")
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
