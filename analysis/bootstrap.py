"""How sure an AP is, and a difference of two: COCO's AP of resampled images.

Images are resampled as wholes, with replacement (Efron and Tibshirani, An Introduction to the
Bootstrap, 1993), so what is alike inside an image stays together; two runs see the same resamples.

Where variants have several seeds, images and seeds are two crossed sources. The variance of a mean
is that over images, plus that over seeds, minus that of both together, which each of them contains
(Cameron, Gelbach and Miller, Robust Inference With Multiway Clustering, 2011, equation 2.11). Few
seeds tell little of their spread: intervals are Student's, with Satterthwaite's degrees of freedom
(An Approximate Distribution of Estimates of Variance Components, 1946).

Intervals are around the AP of the set as it is. Percentiles of resampled APs are not used: AP takes
the highest precision of any higher recall, so a resample, noisier than the set it is drawn from,
has a higher AP where the objects of a category are few.
"""

import hashlib
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from experiments.errors import UserError
from experiments.records import COCO_FIGURES

from .matches import AREAS, DETECTIONS, IOUS, Matches

FIGURES = COCO_FIGURES[:6]  # AP, AP50, AP75, APs, APm, APl
RESAMPLES = 1000
DELTA = 0.5  # AP: smaller differences are of no interest
_RECALLS = np.linspace(0, 1, 101)  # pycocotools'
# Of these hundredths pycocotools' recall is the next larger float: reaching them exactly is not
# enough.
_LATE = np.arange(101) / 100 < _RECALLS
_CELLS = 2**19  # of an array that is worked on at once: what a core's cache holds
_THREADS = 2


@dataclass(frozen=True)
class Estimate:
    """A figure, or a difference of two, with what is known of its error; AP in 0..100.

    The interval is about the recipes, if there are several seeds; about these trained detectors, if
    there are not.
    """

    value: float  # mean over seeds
    std: float  # standard error of the value, of both sources
    std_images: float  # of the value, over resampled images
    std_seeds: float | None  # of one run, over seeds; None where each variant has one
    freedom: float  # degrees of freedom of std

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The two-sided interval that holds the true value with this probability."""
        half = _student((1 + level) / 2, self.freedom) * self.std
        return self.value - half, self.value + half

    def verdict(self, delta: float = DELTA) -> str:
        """What a difference is, in words.

        "equal within ±delta": two one-sided tests at 5 % refuse that it is delta or more, either
        way (Schuirmann, 1987), even if it is not 0; else "better" or "worse": its 95 % interval is
        on one side of 0; else "undecided".
        """
        low, high = self.interval(0.90)
        if -delta < low and high < delta:
            return f"equal within ±{delta:g}"
        low, high = self.interval()
        return "better" if low > 0 else "worse" if high < 0 else "undecided"


@dataclass(frozen=True, eq=False)
class Draws:
    """One run's figures (in the order of `FIGURES`, 0..100, NaN where there is no such object)."""

    values: np.ndarray  # (6,) of the set as it is
    resampled: np.ndarray  # (R, 6) of resamples of its images
    truth: str  # digest of what was to be found, and of how often each image was drawn


def draw(matches: Matches, resamples: int = RESAMPLES, seed: int = 0) -> Draws:
    """Figures of a run and of resamples of its images, the same ones for all runs on them."""
    weights = resample(len(matches.images), resamples, seed)
    truth = hashlib.sha256(weights)
    for part in (matches.images, matches.categories, matches.objects):
        truth.update(np.ascontiguousarray(part))
    return Draws(figures(matches), figures(matches, weights), truth.hexdigest())


def bootstrap(runs: Sequence[Draws]) -> dict[str, Estimate | None]:
    """The mean figures of one variant's runs, a run per seed; None where there is no such object.

    Raises:
        UserError: they were not evaluated on the same images and objects.
    """
    return _estimate(runs, [])


def paired(ours: Sequence[Draws], base: Sequence[Draws]) -> dict[str, Estimate | None]:
    """The difference of two variants' mean figures, ours minus the base's; see `bootstrap`."""
    return _estimate(ours, base)


def _estimate(ours: Sequence[Draws], base: Sequence[Draws]) -> dict[str, Estimate | None]:
    if len({run.truth for run in (*ours, *base)}) > 1:
        raise UserError(
            "runs were evaluated on different images or objects, or resampled differently: "
            "only those on the same ones can be compared"
        )
    groups = [group for group in (ours, base) if group]
    return {
        figure: _of_figure(
            [np.array([run.values[f] for run in group]) for group in groups],
            [np.array([run.resampled[:, f] for run in group]) for group in groups],
        )
        for f, figure in enumerate(FIGURES)
    }


def _of_figure(values: list[np.ndarray], resampled: list[np.ndarray]) -> Estimate | None:
    """Of one or two groups of seeds: (n,) figures, (n, R) of resamples."""
    if np.isnan(np.concatenate(values)).any():
        return None
    known = ~np.isnan(np.concatenate(resampled)).any(0)
    resampled = [group[:, known] for group in resampled]
    signs = (1, -1)[: len(values)]
    value = sum(s * group.mean() for s, group in zip(signs, values, strict=True))
    drawn = sum(s * group.mean(0) for s, group in zip(signs, resampled, strict=True))
    images = drawn.var(ddof=1)
    freedom = sum(len(group) - 1 for group in values)
    if not freedom:
        return Estimate(value, math.sqrt(images), math.sqrt(images), None, math.inf)
    # Seeds are taken to vary alike in both variants: few of each know more together.
    over_seeds = sum(((group - group.mean()) ** 2).sum() for group in values) / freedom
    of_both = (
        sum((group - group.mean(0)).var(axis=1, ddof=1).sum() for group in resampled) / freedom
    )
    share = sum(1 / len(group) for group in values)
    seeds, both = over_seeds * share, of_both * share
    variance = max(images + seeds - both, images, seeds)
    return Estimate(
        value=value,
        std=math.sqrt(variance),
        std_images=math.sqrt(images),
        std_seeds=math.sqrt(over_seeds),
        freedom=freedom * (variance / seeds) ** 2 if seeds else math.inf,
    )


def _student(probability: float, freedom: float) -> float:
    """Quantile of Student's distribution: its density is cos^(freedom - 1) of the angle whose
    tangent is t / sqrt(freedom)."""
    if freedom > 1000:
        return NormalDist().inv_cdf(probability)
    angle = np.linspace(-np.pi / 2, np.pi / 2, 20001)
    share = np.cumsum(np.cos((angle[:-1] + angle[1:]) / 2) ** (freedom - 1))
    angle = np.interp(probability, np.insert(share / share[-1], 0, 0), angle)
    return math.sqrt(freedom) * math.tan(angle)


def resample(images: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each image is drawn, (resamples, images)."""
    random = np.random.default_rng(seed)
    drawn = (random.integers(images, size=images) for _ in range(resamples))
    counts = [np.bincount(indexes, minlength=images) for indexes in drawn]
    return np.array(counts, np.int32).reshape(resamples, images)


def figures(matches: Matches, weights: np.ndarray | None = None) -> np.ndarray:
    """AP, AP50, AP75, APs, APm, APl, 0..100, as pycocotools accumulates them.

    Args:
        weights: (R, I) how often each image is in the set; default: once.

    Returns:
        (R, 6), NaN where the set has no such object; (6,) without weights.
    """
    if weights is None:
        return figures(matches, np.ones((1, len(matches.images)), np.int32))[0]
    with ThreadPoolExecutor(_THREADS) as threads:
        work = range(len(matches.categories))
        found = np.array(list(threads.map(lambda k: _category(matches, k, weights), work)))
    known = ~np.isnan(found)
    total = np.where(known, found, 0).sum(0)
    return 100 * np.divide(total, known.sum(0), np.full(total.shape, np.nan), where=known.any(0))


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
    pairs = zip(COCO_FIGURES, values, strict=True)
    return {figure: None if np.isnan(value) else float(value) for figure, value in pairs}


def _category(matches: Matches, category: int, weights: np.ndarray) -> np.ndarray:
    """(R, 6) figures of one category, 0..1, NaN where there is no object of it."""
    here = slice(*matches.start[category : category + 2])
    image = matches.image[here]
    curves = [
        _Curves(matches.matched[a, here], matches.ignored[a, here]) for a in range(len(AREAS))
    ]
    found = np.empty((len(weights), len(AREAS), len(IOUS)))
    rows = max(1, _CELLS // max(1, len(image)))
    for first in range(0, len(weights), rows):
        some = weights[first : first + rows]
        drawn = some.take(image, axis=1, mode="clip")
        for a, curve in enumerate(curves):
            objects = some @ matches.objects[:, category, a].astype(np.int32)
            found[first : first + rows, a] = curve.ap(drawn, objects)
    mean = found.mean(2)
    return np.stack([mean[:, 0], found[:, 0, 0], found[:, 0, 5], *mean[:, 1:].T], axis=1)


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
