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
import reprlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools import mask as masks

from .. import records
from ..data import annotations
from ..errors import UserError
from .kept import kept

KINDS = ("box", "mask")
IOUS = np.linspace(0.5, 0.95, 10)
# COCO's ranges of an object's area in pixels, both ends in: all, small, medium, large.
AREAS = np.array([(0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10)])
DETECTIONS = 100  # per image and category, those of the highest scores; COCO's limit
LVIS_DETECTIONS = 300  # per image, of all categories
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
        objects = {kind: _Objects(truth, kind, rules == "lvis") for kind in kinds}
    except KeyError as error:
        raise UserError(f"the ground truth of {name} has an entry without {error}") from error
    del truth  # of LVIS, a GB
    found: dict[str, list[tuple[np.ndarray, ...]]] = {kind: [] for kind in kinds}
    number = 0
    for part in itertools.chain(parts, [[]]):
        for kind in kinds:
            found[kind].append(_matched(_Detections(part, objects[kind], kind, name, number), kind))
        number += len(part)
    return {kind: _joined(objects[kind], found.pop(kind)) for kind in kinds}


def _matched(found: "_Detections", kind: str) -> tuple[np.ndarray, ...]:
    """Image, category, score, rank, matched and ignored of each detection."""
    objects = found.objects
    matched, ignored = _match(found, objects, kind)
    excused = ~_inside(found.area) | objects.partly[found.image, found.category][:, None]  # (D, 4)
    ignored |= np.where(excused, ~matched & _bits(np.ones(len(IOUS), bool)), 0)
    image, category = (index.astype(np.int32) for index in (found.image, found.category))
    return image, category, found.score, found.rank.astype(np.uint16), matched, ignored


def _joined(objects: "_Objects", parts: list[tuple[np.ndarray, ...]]) -> Matches:
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


class _Objects:
    """The ground truth as arrays, one line per object, by image and category, in it as in the file;
    those that are ignored in a range of area are outside of it, or so marked: COCO's as crowds."""

    def __init__(self, truth: dict, kind: str, lvis: bool):
        self.lvis = lvis
        self.images = np.unique([image["id"] for image in truth["images"]])
        self.categories = np.unique([category["id"] for category in truth["categories"]])
        self.sizes = {i["id"]: [i["height"], i["width"]] for i in truth["images"]}
        if self.images.dtype.kind != "i" or self.categories.dtype.kind != "i":
            raise UserError("the ground truth's ids of images and categories are no whole numbers")
        listed = truth["annotations"]
        image, image_known = _index(self.images, [a["image_id"] for a in listed])
        category, category_known = _index(self.categories, [a["category_id"] for a in listed])
        area = np.array([a["area"] for a in listed], float)
        known = image_known & category_known & ((area > 0) | (not lvis))  # lvis drops empty ones
        order = np.lexsort((category, image))
        order = order[known[order]]
        listed = [listed[i] for i in order]
        self.image, self.category = image[order], category[order]
        self.group = self.image * len(self.categories) + self.category
        marked = np.array([bool(a.get("ignore" if lvis else "iscrowd")) for a in listed], bool)
        self.crowd = marked & (not lvis)
        self.ignored = marked[:, None] | ~_inside(area[order])  # (N, 4)
        if kind == "box":
            self.shape = np.array([a["bbox"] for a in listed], float).reshape(-1, 4)
        else:
            self.shape = [run_lengths(a, self.sizes[a["image_id"]]) for a in listed]
        # What LVIS says of its images and categories.
        images = truth["images"] if lvis else []
        self.partly = self._listed(images, "not_exhaustive_category_ids")
        self.verified = self._listed(images, "neg_category_ids")
        self.verified[self.image, self.category] = True
        frequency = {c["id"]: c["frequency"] for c in truth["categories"]} if lvis else {}
        self.frequency = np.array([frequency[i] for i in sorted(frequency)], "U1")

    @functools.cached_property
    def mask_boxes(self) -> np.ndarray:
        """(N, 4) around the masks."""
        return masks.toBbox(self.shape)

    @functools.cached_property
    def mask_areas(self) -> np.ndarray:
        return _mask_areas(self.shape)

    def _listed(self, images: list[dict], key: str) -> np.ndarray:
        """(I, K) which categories an image has in its list of this name."""
        pairs = [(image["id"], category) for image in images for category in image[key]]
        listed = np.zeros((len(self.images), len(self.categories)), bool)
        image, _ = _index(self.images, [pair[0] for pair in pairs])
        category, known = _index(self.categories, [pair[1] for pair in pairs])
        listed[image[known], category[known]] = True
        return listed


class _Detections:
    """The detections that count as arrays, one line each, by image and category, in it by falling
    score, equal ones as in the file.

    Args:
        number: of the first of them in the file, for errors.
    """

    def __init__(
        self, results: list[dict], objects: _Objects, kind: str, name: str, number: int = 0
    ):
        self.objects = objects
        shape_key = "bbox" if kind == "box" else "segmentation"
        for key in ("image_id", "category_id", "score", shape_key):
            wrong = next((i for i, result in enumerate(results) if key not in result), None)
            if wrong is not None:
                raise UserError(f"{name} has no {key!r} at entry {number + wrong}")
        image = _places(results, "image_id", objects.images, name, number)
        category = _places(results, "category_id", objects.categories, name, number)
        score = _numbers(results, "score", (), name, number)
        if not ((score >= 0) & (score <= 1)).all():
            wrong = int(np.argmin((score >= 0) & (score <= 1)))
            raise UserError(
                f"{name} has score {score[wrong]} at entry {number + wrong}: it must be in 0..1"
            )
        if kind == "box":
            boxes = _numbers(results, "bbox", (4,), name, number)
            fits = np.isfinite(boxes).all(1) & (boxes[:, 2:] >= 0).all(1)
            if not fits.all():
                wrong = int(np.argmin(fits))
                raise UserError(
                    f"{name} has box {boxes[wrong].tolist()} at entry {number + wrong}: "
                    "it must be x, y, width, height, finite and not negative in size"
                )
            self.area = boxes[:, 2] * boxes[:, 3]
        else:
            for entry, result in enumerate(results, start=number):
                mask, size = result["segmentation"], objects.sizes[result["image_id"]]
                if not isinstance(mask, dict) or not isinstance(mask.get("counts"), str | bytes):
                    raise UserError(
                        f"{name} has entry {entry} with a mask that is not COCO's compressed run "
                        "lengths: encode it with pycocotools.mask"
                    )
                if mask.get("size") not in (size, tuple(size)):
                    raise UserError(
                        f"{name} has a mask of size {mask.get('size')!r} at entry {entry}: "
                        f"image {result['image_id']} has {size} (height, width)"
                    )
            self.area = _mask_areas([r["segmentation"] for r in results])

        order = np.lexsort((-score, category, image))
        image, category, score = image[order], category[order], score[order]
        group = image * len(objects.categories) + category
        shape = boxes if kind == "box" else [r["segmentation"] for r in results]
        same = (group[1:] == group[:-1]) & (score[1:] == score[:-1])
        seen = {}
        for i in np.flatnonzero(np.append(same, False) | np.insert(same, 0, False)):
            result = results[order[i]]
            form = [result.get("bbox"), result["segmentation"]["counts"] if kind == "mask" else ""]
            first = seen.setdefault((group[i], score[i], str(form)), order[i])
            if first != order[i]:
                raise UserError(
                    f"{name} has entry {number + first} twice, again as {number + order[i]}: image "
                    f"{result['image_id']}, category {result['category_id']}, score {score[i]}"
                )
        rank = _ranks(group)
        if objects.lvis:
            # The limit is of all that was found in an image, whether it counts or not.
            keep = np.zeros(len(order), bool)
            keep[np.lexsort((order, -score, image))] = _ranks(image) < LVIS_DETECTIONS
            keep &= objects.verified[image, category] & (self.area[order] > 0)
        else:
            keep = rank < DETECTIONS
        order = order[keep]
        self.image, self.category, self.score = image[keep], category[keep], score[keep]
        self.group, self.rank, self.area = group[keep], rank[keep], self.area[order]
        self.shape = shape[order] if kind == "box" else [shape[i] for i in order]


def _match(found: _Detections, objects: _Objects, kind: str) -> tuple[np.ndarray, np.ndarray]:
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


def _ranks(values: np.ndarray) -> np.ndarray:
    """For sorted values: the how manieth of its like each is, from 0."""
    return np.arange(len(values)) - np.searchsorted(values, values)


def _runs(values: np.ndarray) -> Iterator[tuple[int, int]]:
    """First and one past the last index of each run of equal values."""
    ends = np.flatnonzero(np.diff(values)) + 1
    bounds = [0, *ends.tolist(), len(values)] if len(values) else [0]
    return itertools.pairwise(bounds)


def _candidates(found: _Detections, objects: _Objects) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Detection and object of all pairs of the same image and category, in blocks."""
    for first in range(0, len(found.group), _BLOCK):
        group = found.group[first : first + _BLOCK]
        low = np.searchsorted(objects.group, group)
        count = np.searchsorted(objects.group, group, side="right") - low
        detection = np.repeat(np.arange(len(group)), count)
        offset = np.arange(len(detection)) - np.repeat(np.cumsum(count) - count, count)
        yield detection + first, low[detection] + offset


def _box_pairs(found: _Detections, objects: _Objects) -> Iterator[tuple[np.ndarray, ...]]:
    """Detection, object and IoU of the pairs that may match."""
    for detection, target in _candidates(found, objects):
        d, o = found.shape[detection], objects.shape[target]
        iou = _box_iou(d, o, d[:, 2] * d[:, 3], o[:, 2] * o[:, 3], objects.crowd[target])
        keep = iou >= IOUS[0]
        yield detection[keep], target[keep], iou[keep]


def _mask_pairs(found: _Detections, objects: _Objects) -> Iterator[tuple[np.ndarray, ...]]:
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


def _inside(area: np.ndarray) -> np.ndarray:
    """(N,) to (N, 4): whether it is in each of `AREAS`."""
    return (area[:, None] >= AREAS[:, 0]) & (area[:, None] <= AREAS[:, 1])


def _bits(flags: np.ndarray) -> np.ndarray:
    """(..., 10) over IoUs as bits of one number."""
    return (flags << np.arange(len(IOUS))).sum(-1).astype(np.uint16)


def _mask_areas(encoded: list[dict]) -> np.ndarray:
    """In pixels; in pieces, as pycocotools 2.0.11 with numpy 2 takes 255 at once."""
    pieces = [masks.area(encoded[i : i + 255]) for i in range(0, len(encoded), 255)]
    return np.concatenate([np.zeros(0), *pieces])


def _index(ids: np.ndarray, values: list) -> tuple[np.ndarray, np.ndarray]:
    """Where each value is in sorted ids, and whether it is."""
    least, most = ids[[0, -1]].tolist()
    whole = np.array([isinstance(v, int) and least <= v <= most for v in values], bool)
    numbers = [v if is_whole else ids[0] for v, is_whole in zip(values, whole, strict=True)]
    numbers = np.array(numbers, ids.dtype)
    place = np.searchsorted(ids, numbers).clip(max=len(ids) - 1)
    return place, whole & (ids[place] == numbers)


def _places(results: list[dict], key: str, ids: np.ndarray, name: str, number: int) -> np.ndarray:
    """(D,) where in `ids` the results' ids lie; the first result has this number."""
    place, known = _index(ids, [result[key] for result in results])
    if not known.all():
        wrong = int(np.argmin(known))
        raise UserError(
            f"{name} has {key.removesuffix('_id')} {results[wrong][key]!r} at entry "
            f"{number + wrong}, which its ground truth has not"
        )
    return place


def _numbers(
    results: list[dict], key: str, shape: tuple[int, ...], name: str, number: int
) -> np.ndarray:
    """(D, *shape) of an entry of the results, the first of which has this number."""
    values = [result[key] for result in results]
    numbers = _array(values)
    if numbers.shape == (len(values), *shape):
        return numbers
    if not values:
        return np.zeros((0, *shape))
    wrong = next(i for i, value in enumerate(values) if _array(value).shape != shape)
    what = f"{shape[0]} numbers" if shape else "a number"
    raise UserError(
        f"{name} has {key} {values[wrong]!r} at entry {number + wrong}: it must be {what}"
    )


def _array(values) -> np.ndarray:
    """Of numbers; of no shape that is asked for, if they are not."""
    try:
        numbers = np.array(values)
    except ValueError:  # not all as long
        return np.zeros((0, 0, 0))
    return numbers.astype(float) if numbers.dtype.kind in "iuf" else np.zeros((0, 0, 0))


def run_lengths(annotation: dict, size: Sequence[int]) -> dict:
    """An object's or detection's mask, in any of COCO's forms, as pycocotools' run lengths.

    Args:
        size: of its image, height and width.
    """
    shape = annotation["segmentation"]
    if isinstance(shape, list):
        return masks.merge(masks.frPyObjects(shape, *size))
    return masks.frPyObjects(shape, *size) if isinstance(shape["counts"], list) else shape


def read_results(path: Path) -> list[dict]:
    """What a file in COCO's result format holds.

    Raises:
        UserError: it is not there, or not of that format.
    """
    results, _ = annotations.parse(path)
    if not isinstance(results, list):
        raise UserError(f"{path} is no list of detections in COCO's format")
    wrong = next((i for i, result in enumerate(results) if not isinstance(result, dict)), None)
    if wrong is not None:
        raise UserError(
            f"{path} has {reprlib.repr(results[wrong])} at entry {wrong}: it is no detection"
        )
    for result in results:
        for key in ("image_id", "category_id"):
            if type(result.get(key)) is float:
                result[key] = annotations.whole(result[key])
    return results


def _digest(what: str, *paths: Path) -> str:
    digest = hashlib.sha256(f"{_VERSION} {what}".encode())
    for path in paths:
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()
