"""How sure an AP is, and a difference of two: COCO's or LVIS's AP of resampled images.

Images are resampled as wholes, with replacement (Efron and Tibshirani, An Introduction to the
Bootstrap, 1993), so what is alike inside an image stays together; two runs see the same resamples.

Where variants have several seeds, images and seeds are two crossed sources. The variance of a mean
is that over images, plus that over seeds, minus that of both together, which each of them contains
(Cameron, Gelbach and Miller, Robust Inference With Multiway Clustering, 2011, equation 2.11). Few
seeds tell little of their spread: their share of an interval is by Student's quantile, the rest by
the normal one, and the two half-widths are added as squares (Howe, Approximate Confidence Limits on
the Mean of X + Y Where X and Y Are Two Tabled Independent Random Variables, 1974). That errs on the
safe side where both matter alike.

Intervals are around the AP of the set as it is. Percentiles of resampled APs are not used: AP takes
the highest precision of any higher recall, so a resample, noisier than the set it is drawn from,
has a higher AP where the objects of a category are few.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np

from experiments import matches
from experiments.average_precision import FIGURES, figures
from experiments.errors import UserError
from experiments.kept import kept
from experiments.matches import Matches

RESAMPLES = 1000
_VERSION = 1  # of what is kept; raise it when drawing changes
DELTA = 0.5  # AP: smaller differences are of no interest


@dataclass(frozen=True)
class Estimate:
    """A figure, or a difference of two, with what is known of its error; AP in 0..100.

    The interval is about the recipes, if there are several seeds; about these trained detectors, if
    there are not.
    """

    value: float  # mean over seeds
    std: float  # standard error of the value, of both sources
    std_images: float  # of the value, over resampled images
    std_seeds: float | None  # of the value, over seeds; None where each variant has one
    freedom: float  # degrees of freedom of std_seeds

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The two-sided interval that holds the true value with this probability."""
        at = (1 + level) / 2
        seeds = self.std_seeds or 0.0
        rest = math.sqrt(max(self.std**2 - seeds**2, 0.0))
        half = math.hypot(NormalDist().inv_cdf(at) * rest, _student(at, self.freedom) * seeds)
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
    """One run's figures (0..100, NaN where there is no such object): the first F of `FIGURES`, 6 by
    COCO's rules, 9 by LVIS's."""

    values: np.ndarray  # (F,) of the set as it is
    resampled: np.ndarray  # (R, F) of resamples of its images
    truth: str  # digest of what was to be found, and of how often each image was drawn


def draw(run: Matches, resamples: int = RESAMPLES, seed: int = 0) -> Draws:
    """Figures of a run and of resamples of its images, the same ones for all runs on them."""
    weights = resample(len(run.images), resamples, seed)
    truth = hashlib.sha256(weights)
    for part in (run.images, run.categories, run.objects, run.frequency):
        truth.update(np.ascontiguousarray(part))
    return Draws(figures(run), figures(run, weights), truth.hexdigest())


def of_run(folder: str | Path, kind: str = "box") -> Draws:
    """Draws of the finished run in `folder`, kept beside its record.

    Raises:
        UserError: as of `experiments.matches.of_run`.
    """
    found = matches.of_run(folder, kind)
    digest = hashlib.sha256(f"{_VERSION} {RESAMPLES}".encode())
    for array in vars(found).values():
        digest.update(np.ascontiguousarray(array))
    path = Path(folder) / f"draws_{kind}.npz"
    arrays = kept(path, digest.hexdigest(), lambda: vars(draw(found)))
    return Draws(**arrays | {"truth": str(arrays["truth"])})


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
        for f, figure in enumerate(FIGURES[: len(ours[0].values)])
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
        std_seeds=math.sqrt(seeds),
        freedom=freedom,
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
