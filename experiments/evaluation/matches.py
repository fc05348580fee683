"""Which detections are right, by COCO's or LVIS's rules: all that box or mask AP needs of a run,
kept once.

Equal to what pycocotools' `COCOeval.evaluate` finds (public file pycocotools/cocoeval.py), or
`LVISEval.evaluate` of the package lvis (0.5.3, lvis/eval.py and results.py), computed for all
images at once; the areas, boxes and overlaps of masks are pycocotools' own. One thing is not
theirs: a match to an object whose annotation id is 0 counts, where both take it for none.
"""

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools import mask as masks

from .. import records
from ..data import annotations
from ..errors import UserError
from .detections import AREAS, Detections, Objects, in_areas, read_results
from .kept import kept

KINDS = ("box", "mask")
IOUS = np.linspace(0.5, 0.95, 10)
_VERSION = 3  # of the file; raise it when matching changes
_BLOCK = 2**16  # detections whose overlaps are in memory at once


@dataclass(frozen=True, eq=False)
class Matches:
    """What the evaluation knows of a run before it counts, for boxes or for masks.

    I images, K categories, D detections, 10 IoUs (`IOUS`), 4 ranges of area (`AREAS`). Detections
    are by category, in it by falling score; equal scores by image, in it as in the file.
    """

    images: np.ndarray  # (I,) ids, rising
    categories: np.ndarray  # (K,) ids, rising
    start: np.ndarray  # (K + 1,) of each category's detections
    image: np.ndarray  # (D,) index into images
    rank: np.ndarray  # (D,) among the detections of this category in this image, from 0
    matched: np.ndarray  # (4, D) uint16, bit t: matched to an object at IOUS[t]
    ignored: np.ndarray  # (4, D) uint16, bit t: counts neither as right nor as wrong
    objects: np.ndarray  # (I, K, 4) how many are to be found
    frequency: np.ndarray  # (K,) "r", "c" or "f" by LVIS's rules; (0,) by COCO's


def of_run(folder: str | Path, kind: str = "box") -> Matches:
    """Matches of the finished run in `folder`, kept there beside its record.

    Raises:
        UserError: it has no such predictions, or its ground truth is not there.
    """
    folder = Path(folder)
    record = records.read(folder / records.RECORD)
    if not getattr(record, kind):
        raise UserError(f"{folder} has no {kind} AP: its detector finds none")
    rules = record.data.get("kind", "coco")
    return of_file(Path(record.data["val"]), folder / record.predictions, kind, rules)


def of_file(truth: Path, predictions: Path, kind: str = "box", rules: str = "coco") -> Matches:
    """Matches of a file in COCO's result format, kept beside it in `matches_<kind>.npz`.

    Raises:
        UserError: a file is not there or not of its format; see `compute`.
    """
    arrays = kept(
        predictions.with_name(f"matches_{kind}.npz"),
        _digest(f"{kind} {rules}", truth, predictions),
        lambda: vars(compute(truth, read_results(predictions), kind, str(predictions), rules)),
    )
    return Matches(**arrays)


def of_parts(
    truth: Path,
    predictions: Path,
    kinds: Sequence[str],
    rules: str,
    parts: Callable[[], Iterable[list[dict]]],
) -> dict[str, Matches]:
    """As `of_file` of each kind, of a file whose detections are at hand in parts: together those of
    LVIS, 300 an image, would take 10 GB.

    Args:
        parts: gives them in the file's order, all of an image in one part.

    Raises:
        UserError: as of `of_file`.
    """
    made: dict[str, Matches] = {}

    def make(kind: str) -> dict[str, np.ndarray]:
        if kind not in made:
            made.update(_compute(truth, parts(), kinds, str(predictions), rules))
        return vars(made.pop(kind))

    found = {}
    for kind in kinds:
        path = predictions.with_name(f"matches_{kind}.npz")
        digest = _digest(f"{kind} {rules}", truth, predictions)
        found[kind] = Matches(**kept(path, digest, functools.partial(make, kind)))
    return found


def compute(
    truth: str | Path | dict,
    predictions: list[dict],
    kind: str = "box",
    name: str = "the predictions",
    rules: str = "coco",
) -> Matches:
    """Match detections to objects.

    Args:
        truth: annotation file in COCO's format, or LVIS's, or what it holds; left as it is.
        predictions: detections in COCO's result format; left as they are.
        kind: "box" or "mask".
        name: of the predictions, in errors.
        rules: "coco", or "lvis": detections count only where it is known whether the image has
            objects of their category, and those that match none only where it is known that all
            are annotated; objects can be ignored, but none is a crowd.

    Raises:
        UserError: a prediction is of no image or category of the truth, is no box or mask, has a
            score outside 0..1, occurs twice, or is a mask of another size than its image.
    """
    return _compute(truth, [predictions], [kind], name, rules)[kind]


def _compute(
    truth: str | Path | dict,
    parts: Iterable[list[dict]],
    kinds: Sequence[str],
    name: str,
    rules: str,
) -> dict[str, Matches]:
    """As `compute`, of detections in parts, as `of_parts` has them."""
    if isinstance(truth, str | Path):
        truth = annotations.read(truth, rules)
    try:
        objects = {kind: Objects(truth, kind, rules == "lvis") for kind in kinds}
    except KeyError as error:
        raise UserError(f"the ground truth of {name} has an entry without {error}") from error
    del truth  # of LVIS, a GB
    found: dict[str, list[tuple[np.ndarray, ...]]] = {kind: [] for kind in kinds}
    number = 0
    for part in itertools.chain(parts, [[]]):
        for kind in kinds:
            found[kind].append(_matched(Detections(part, objects[kind], kind, name, number), kind))
        number += len(part)
    return {kind: _joined(objects[kind], found.pop(kind)) for kind in kinds}


def _matched(found: Detections, kind: str) -> tuple[np.ndarray, ...]:
    """Image, category, score, rank, matched and ignored of each detection."""
    objects = found.objects
    matched, ignored = _match(found, objects, kind)
    excused = ~in_areas(found.area) | objects.partly[found.image, found.category][:, None]  # (D, 4)
    ignored |= np.where(excused, ~matched & _bits(np.ones(len(IOUS), bool)), 0)
    image, category = (index.astype(np.int32) for index in (found.image, found.category))
    return image, category, found.score, found.rank.astype(np.uint16), matched, ignored


def _joined(objects: Objects, parts: list[tuple[np.ndarray, ...]]) -> Matches:
    image, category, score, rank, matched, ignored = map(np.concatenate, zip(*parts, strict=True))
    parts.clear()
    order = np.lexsort((image, -score, category))
    count = np.zeros((len(objects.images), len(objects.categories), len(AREAS)), np.uint16)
    np.add.at(count, (objects.image, objects.category), ~objects.ignored)
    return Matches(
        images=objects.images,
        categories=objects.categories,
        start=np.searchsorted(category[order], np.arange(len(objects.categories) + 1)),
        image=image[order],
        rank=rank[order],
        matched=np.ascontiguousarray(matched[order].T),
        ignored=np.ascontiguousarray(ignored[order].T),
        objects=count,
        frequency=objects.frequency,
    )


def _match(found: Detections, objects: Objects, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """What each detection is matched to, by falling score: the object that overlaps it most, of
    those not yet taken; those that are ignored only where no other will do, crowds any number of
    times.

    Returns:
        matched, ignored: (D, 4) bits over IoUs.
    """
    matched = np.zeros((len(found.group), len(AREAS)), np.uint16)
    ignored = matched.copy()
    pairs = list((_box_pairs if kind == "box" else _mask_pairs)(found, objects))
    detection = np.concatenate([pair[0] for pair in pairs] or [np.zeros(0, int)])
    target = np.concatenate([pair[1] for pair in pairs] or [np.zeros(0, int)])
    iou = np.concatenate([pair[2] for pair in pairs] or [np.zeros(0)])
    # Detections that do not share an image and category take their turns side by side.
    turn = _turns(detection, found.group)
    order = np.lexsort((target, iou, detection, turn))  # the last that is free is taken
    detection, target, iou, turn = (a[order] for a in (detection, target, iou, turn))
    taken = np.zeros((len(objects.group), len(AREAS), len(IOUS)), bool)
    least = np.minimum(IOUS, 1 - 1e-10)
    for first, last in _runs(turn):
        d, o = detection[first:last], target[first:last]
        free = ~taken[o] | objects.crowd[o, None, None]
        free &= (iou[first:last, None] >= least)[:, None, :]
        ignore = objects.ignored[o]  # (P, 4)
        count = last - first
        place = np.arange(1, count + 1)[:, None] + np.where(ignore, 0, count)
        starts = np.array([start for start, _ in _runs(d)])
        best = np.maximum.reduceat(np.where(free, place[:, :, None], 0), starts)
        some = best > 0  # (detections of this turn, 4, 10)
        pick = (best - 1) % count
        _, area, threshold = np.nonzero(some)
        taken[o[pick[some]], area, threshold] = True
        at = np.arange(len(AREAS))[:, None]
        matched[d[starts]] = _bits(some)
        ignored[d[starts]] = _bits(some & ignore[pick, at])
    return matched, ignored


def _turns(detection: np.ndarray, group: np.ndarray) -> np.ndarray:
    """For sorted detections, each as often as it has candidates: the how manieth with any of its
    group it is."""
    new = np.diff(detection, prepend=-1) > 0
    number = np.cumsum(new) - 1
    of_new = group[detection[new]]
    return (number - np.searchsorted(of_new, of_new)[number]) if len(detection) else number


def _runs(values: np.ndarray) -> Iterator[tuple[int, int]]:
    """First and one past the last index of each run of equal values."""
    ends = np.flatnonzero(np.diff(values)) + 1
    bounds = [0, *ends.tolist(), len(values)] if len(values) else [0]
    return itertools.pairwise(bounds)


def _candidates(found: Detections, objects: Objects) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Detection and object of all pairs of the same image and category, in blocks."""
    for first in range(0, len(found.group), _BLOCK):
        group = found.group[first : first + _BLOCK]
        low = np.searchsorted(objects.group, group)
        count = np.searchsorted(objects.group, group, side="right") - low
        detection = np.repeat(np.arange(len(group)), count)
        offset = np.arange(len(detection)) - np.repeat(np.cumsum(count) - count, count)
        yield detection + first, low[detection] + offset


def _box_pairs(found: Detections, objects: Objects) -> Iterator[tuple[np.ndarray, ...]]:
    """Detection, object and IoU of the pairs that may match."""
    for detection, target in _candidates(found, objects):
        d, o = found.shape[detection], objects.shape[target]
        iou = _box_iou(d, o, d[:, 2] * d[:, 3], o[:, 2] * o[:, 3], objects.crowd[target])
        keep = iou >= IOUS[0]
        yield detection[keep], target[keep], iou[keep]


def _mask_pairs(found: Detections, objects: Objects) -> Iterator[tuple[np.ndarray, ...]]:
    """As `_box_pairs`. Only masks that may overlap enough, going by their boxes and areas, are laid
    on each other."""
    if not len(found.group) or not len(objects.group):
        return
    boxes, targets, areas = masks.toBbox(found.shape), objects.mask_boxes, objects.mask_areas
    for detection, target in _candidates(found, objects):
        d, o = boxes[detection], targets[target]
        most = _box_iou(d, o, found.area[detection], areas[target], objects.crowd[target])
        keep = most >= IOUS[0] - 1e-9
        detection, target = detection[keep], target[keep]
        iou = np.empty(len(detection))
        for first, last in _runs(found.group[detection]):
            d, row = np.unique(detection[first:last], return_inverse=True)
            o, column = np.unique(target[first:last], return_inverse=True)
            table = masks.iou(
                [found.shape[i] for i in d],
                [objects.shape[i] for i in o],
                objects.crowd[o].astype(np.uint8).tolist(),
            )
            iou[first:last] = table[row, column]
        keep = iou >= IOUS[0]
        yield detection[keep], target[keep], iou[keep]


def _box_iou(
    d: np.ndarray, o: np.ndarray, d_area: np.ndarray, o_area: np.ndarray, crowd: np.ndarray
) -> np.ndarray:
    """The boxes' intersection over the areas' union, or over the detection's area if the object is
    a crowd. For areas inside the boxes, their own IoU is no larger."""
    size = np.minimum(d[:, :2] + d[:, 2:], o[:, :2] + o[:, 2:]) - np.maximum(d[:, :2], o[:, :2])
    inside = np.where((size > 0).all(1), size[:, 0] * size[:, 1], 0.0)
    union = np.where(crowd, d_area, d_area + o_area - inside)
    # Where masks leave gaps the boxes may intersect in more than the areas' sum.
    enough = (inside > 0) & (union <= 0)
    return np.where(enough, 1.0, inside / np.where(union > 0, union, 1.0))


def _bits(flags: np.ndarray) -> np.ndarray:
    """(..., 10) over IoUs as bits of one number."""
    return (flags << np.arange(len(IOUS))).sum(-1).astype(np.uint16)


def _digest(what: str, *paths: Path) -> str:
    digest = hashlib.sha256(f"{_VERSION} {what}".encode())
    for path in paths:
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()
