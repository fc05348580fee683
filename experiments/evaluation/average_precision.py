"""COCO's and LVIS's figures from matches, of a set as it is or of any choice of its images: as
`accumulate` and `summarize` of pycocotools' `COCOeval` (public file pycocotools/cocoeval.py) and of
`LVISEval` (package lvis 0.5.3, lvis/eval.py) count them."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ..records import COCO_FIGURES, LVIS_FIGURES
from .detections import AREAS, DETECTIONS
from .matches import IOUS, Matches

FIGURES = LVIS_FIGURES  # the first six are COCO's too
_RECALLS = np.linspace(0, 1, 101)  # pycocotools' and lvis's
# Of these hundredths pycocotools' recall is the next larger float: reaching them exactly is not
# enough.
_LATE = np.arange(101) / 100 < _RECALLS
_CELLS = 2**19  # of an array that is worked on at once: what a core's cache holds
_THREADS = 2


def figures(matches: Matches, weights: np.ndarray | None = None) -> np.ndarray:
    """AP, AP50, AP75, APs, APm, APl, and by LVIS's rules APr, APc, APf, 0..100: means over the
    categories of which there are objects.

    Args:
        weights: (R, I) how often each image is in the set; default: once.

    Returns:
        (R, 6), or (R, 9) by LVIS's rules, NaN where the set has no such object; without weights
        (6,) or (9,).
    """
    found = of_categories(matches, weights)
    groups = [found]
    if len(matches.frequency):
        groups += [found[matches.frequency == group, ..., :1] for group in "rcf"]
    return np.concatenate([_mean(group) for group in groups], axis=-1)


def of_categories(matches: Matches, weights: np.ndarray | None = None) -> np.ndarray:
    """The first six of `figures`, of each category: (K, R, 6), or (K, 6) without weights."""
    if weights is None:
        return of_categories(matches, np.ones((1, len(matches.images)), np.int32))[:, 0]
    with ThreadPoolExecutor(_THREADS) as threads:
        work = range(len(matches.categories))
        return 100 * np.array(list(threads.map(lambda k: _category(matches, k, weights), work)))


def of_images(matches: Matches) -> np.ndarray:
    """(I,) AP, 0..100, of the set without one image, for each; NaN where no object is left.

    Equal to `figures` with a row of weights per image that are 0 there and 1 elsewhere. An image
    changes the categories alone that have objects or detections in it, so only they are counted
    again.
    """
    whole = of_categories(matches)[:, 0]
    known = ~np.isnan(whole)
    total = np.full(len(matches.images), whole[known].sum())
    count = np.full(len(matches.images), known.sum())
    with ThreadPoolExecutor(_THREADS) as threads:
        work = np.flatnonzero(known)
        without = threads.map(lambda k: _without(matches, k), work)
        for k, (there, left) in zip(work, without, strict=True):
            gone = np.isnan(left)
            total[there] += np.where(gone, 0, left) - whole[k]
            count[there] -= gone
    return np.divide(total, count, np.full(len(total), np.nan), where=count > 0)


def coco_figures(matches: Matches) -> dict[str, float | None]:
    """COCO's twelve figures, 0..100, as `COCOeval.summarize` gives them; None where the set has no
    such object."""
    objects = matches.objects.astype(np.int64).sum(0)  # (K, 4)
    bits = np.arange(len(IOUS))[:, None]
    right = matches.matched & ~matches.ignored
    category = np.repeat(np.arange(len(objects)), np.diff(matches.start))

    def recall(area: int, most: int) -> float:
        found = (right[area] >> bits & 1) * (matches.rank < most)
        counts = [np.bincount(category, weights=row, minlength=len(objects)) for row in found]
        known = objects[:, area] > 0
        return 100 * (np.array(counts)[:, known] / objects[known, area]).mean()

    values = [*figures(matches)]
    for area, most in ((0, 1), (0, 10), *((a, DETECTIONS) for a in range(len(AREAS)))):
        values.append(recall(area, most) if objects[:, area].any() else np.nan)
    return _named(COCO_FIGURES, values)


def lvis_figures(matches: Matches) -> dict[str, float | None]:
    """LVIS's nine figures of matches by its rules, as `coco_figures`."""
    return _named(LVIS_FIGURES, figures(matches))


def _named(names: Iterable[str], values: Iterable[float]) -> dict[str, float | None]:
    pairs = zip(names, values, strict=True)
    return {figure: None if np.isnan(value) else float(value) for figure, value in pairs}


def _mean(found: np.ndarray) -> np.ndarray:
    """Over the first axis, of what is no NaN."""
    known = ~np.isnan(found)
    total = np.where(known, found, 0).sum(0)
    return np.divide(total, known.sum(0), np.full(total.shape, np.nan), where=known.any(0))


def _category(matches: Matches, category: int, weights: np.ndarray) -> np.ndarray:
    """(R, 6) figures of one category, 0..1, NaN where there is no object of it."""
    here = slice(*matches.start[category : category + 2])
    image = matches.image[here]
    curves = [
        _Curves(matches.matched[a, here], matches.ignored[a, here]) for a in range(len(AREAS))
    ]
    there = np.flatnonzero(matches.objects[:, category, 0])
    objects = matches.objects[there, category].astype(np.int32)  # (images with any, 4)
    found = np.empty((len(weights), len(AREAS), len(IOUS)))
    rows = max(1, _CELLS // max(1, len(image)))
    for first in range(0, len(weights), rows):
        some = weights[first : first + rows]
        drawn = some.take(image, axis=1, mode="clip")
        to_find = some.take(there, axis=1, mode="clip") @ objects
        for a, curve in enumerate(curves):
            found[first : first + rows, a] = curve.ap(drawn, to_find[:, a])
    mean = found.mean(2)
    return np.stack([mean[:, 0], found[:, 0, 0], found[:, 0, 5], *mean[:, 1:].T], axis=1)


def _without(matches: Matches, category: int) -> tuple[np.ndarray, np.ndarray]:
    """Which images (n,) have objects or detections of a category, and its AP without each of them
    (n,), 0..100, NaN where no object is left."""
    here = slice(*matches.start[category : category + 2])
    image = matches.image[here]
    objects = matches.objects[:, category, 0].astype(np.int32)
    there = np.union1d(image, np.flatnonzero(objects))
    to_find = objects.sum() - objects[there]
    curve = _Curves(matches.matched[0, here], matches.ignored[0, here])
    found = np.empty((len(there), len(IOUS)))
    rows = max(1, _CELLS // max(1, len(image)))
    for first in range(0, len(there), rows):
        some = slice(first, first + rows)
        kept = (image != there[some, None]).astype(np.int32)
        found[some] = curve.ap(kept, to_find[some])
    return there, 100 * found.mean(1)


class _Curves:
    """Precision over recall of one category and range of area, for every IoU.

    Precision's envelope is set by right detections alone, so only there is anything computed: how
    many detections count up to one is a sum over those that count at the lowest IoU, and over the
    few that another IoU adds or takes away.
    """

    def __init__(self, matched: np.ndarray, ignored: np.ndarray):
        bits = np.arange(len(IOUS))[:, None]
        counts = (ignored >> bits & 1) == 0  # (10, D)
        right = (matched >> bits & 1 == 1) & counts
        self.base = np.flatnonzero(counts[0])
        self.of_iou = []
        for at, all_counting in zip(right, counts, strict=True):
            right_ones = np.flatnonzero(at)
            other = np.flatnonzero(all_counting != counts[0])
            self.of_iou.append(
                (
                    right_ones,
                    np.searchsorted(self.base, right_ones, side="right"),
                    other,
                    np.where(all_counting[other], 1, -1).astype(np.int32),
                    np.searchsorted(other, right_ones, side="right"),
                )
            )

    def ap(self, drawn: np.ndarray, objects: np.ndarray) -> np.ndarray:
        """(R, 10) AP at each IoU, NaN where there is no object.

        Args:
            drawn: (R, D) how often each detection is there.
            objects: (R,) how many there are to be found.
        """
        found = np.zeros((len(drawn), len(IOUS)))
        found[objects == 0] = np.nan
        base = _sums(drawn.take(self.base, axis=1, mode="clip"))
        reached = _reached(objects)
        row = (np.arange(len(drawn)) * reached.shape[1])[:, None]
        for t, (right, in_base, other, sign, in_other) in enumerate(self.of_iou):
            if not len(right):
                continue
            true = np.cumsum(drawn.take(right, axis=1, mode="clip"), axis=1, dtype=np.int32)
            all_ = base.take(in_base, axis=1, mode="clip")
            if len(other):
                changes = _sums(drawn.take(other, axis=1, mode="clip") * sign)
                all_ += changes.take(in_other, axis=1, mode="clip")
            precision = true / np.maximum(all_, 1)
            envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            recalls = reached.take(true + row, mode="clip")
            steps = np.diff(recalls, axis=1, prepend=0)
            found[:, t] += np.einsum("rn,rn->r", envelope, steps) / len(_RECALLS)
        return found


def _sums(values: np.ndarray) -> np.ndarray:
    """(R, n) to (R, n + 1): the sum of the first 0, 1, ..., n."""
    sums = np.zeros((len(values), values.shape[1] + 1), np.int32)
    np.cumsum(values, axis=1, out=sums[:, 1:])
    return sums


def _reached(objects: np.ndarray) -> np.ndarray:
    """(R, most objects + 1): how many of pycocotools' 101 recalls are reached by finding 0, 1, ...
    of them."""
    found = np.arange(objects.max(initial=0) + 1)
    objects = np.maximum(objects, 1)[:, None]
    hundredths, rest = np.divmod(100 * found, objects)
    hundredths = np.minimum(hundredths, 100)
    return (hundredths + 1 - ((rest == 0) & _LATE[hundredths])).astype(np.float64)
