"""How sure an AP is, and a difference of two: COCO's or LVIS's AP of resampled images.

Images are resampled as wholes, with replacement (Efron and Tibshirani, An Introduction to the
Bootstrap, 1993), so what is alike inside an image stays together; all runs see the same resamples.

Rows of a study share seeds, and with them whatever a seed decides in all of them alike: a
randomised block design, AP = row + seed + residual (Montgomery, Design and Analysis of Experiments,
chapter 4). A row is set against the base seed by seed, the residuals are pooled over all rows whose
spreads are alike, and the intervals of all rows hold at once (Dunnett, A Multiple Comparison
Procedure for Comparing Several Treatments with a Control, 1955). A row whose seeds spread
otherwise, or that has too few to tell, is set against the base by its own paired differences.

Images and seeds are two crossed sources. The variance of a mean is that over images, plus that over
seeds, minus that of both together, which each of them contains (Cameron, Gelbach and Miller, Robust
Inference With Multiway Clustering, 2011, equation 2.11). Few seeds tell little of their spread:
their share of an interval is by Student's quantile, the rest by the normal one, and the two
half-widths are added as squares (Howe, Approximate Confidence Limits on the Mean of X + Y Where X
and Y Are Two Tabled Independent Random Variables, 1974). That errs on the safe side where both
matter alike.

Intervals are around the AP of the set as it is. Percentiles of resampled APs are not used: AP takes
the highest precision of any higher recall, so a resample, noisier than the set it is drawn from,
has a higher AP where the objects of a category are few.
"""

import functools
import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from experiments.errors import UserError
from experiments.evaluation import matches
from experiments.evaluation.average_precision import FIGURES, figures
from experiments.evaluation.kept import kept
from experiments.evaluation.matches import Matches

from . import pooling
from .estimates import Estimate

RESAMPLES = 1000
_VERSION = 1  # of what is kept; raise it when drawing changes
# AP: smaller differences are of no interest. At mini scale it is what three seeds can resolve.
DELTAS = {"mini": 2.0, "small": 0.5, "coco": 0.5}
DELTA = 0.5  # of a record of anything else


@dataclass(frozen=True, eq=False)
class Draws:
    """One run's figures (0..100, NaN where there is no such object): the first F of `FIGURES`, 6 by
    COCO's rules, 9 by LVIS's."""

    values: np.ndarray  # (F,) of the set as it is
    resampled: np.ndarray  # (R, F) of resamples of its images
    truth: str  # digest of what was to be found, and of how often each image was drawn


def delta_of(scale: str) -> float:
    """Differences in AP that are of no interest at a scale."""
    return DELTAS.get(scale, DELTA)


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
        UserError: as of `experiments.evaluation.matches.of_run`.
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
    _check(runs)
    values, images = _arrays(runs)
    one_row = np.zeros(len(runs), int)
    weights = np.full(len(runs), 1 / len(runs))
    found = _estimate(values, images, one_row, one_row, weights, "own")
    return _by_figure(found, values)


def paired(ours: Sequence[Draws], base: Sequence[Draws]) -> dict[str, Estimate | None]:
    """The difference of two variants' mean figures, ours minus the base's; see `bootstrap`.

    Images are paired, seeds are not: they may be any.
    """
    _check([*base, *ours])
    values, images = _arrays([*base, *ours])
    rows = np.repeat([0, 1], [len(base), len(ours)])
    return _by_figure(_unpaired(values, images, rows, 1), values)


def against(
    base: str,
    runs: Mapping[str, Mapping[int, Draws]],
    foreign: Collection[str] = (),
    trained_as: Mapping[str, str] | None = None,
) -> dict[str, dict[str, Estimate | None]]:
    """Of each row but the base, the difference of its figures to the base's; see `bootstrap`.

    Args:
        runs: of each row, by seed.
        foreign: rows whose seeds are not the others'.
        trained_as: of rows that differ from another at test time alone, that other one. What
            differs from the base so is always set against it by its own pairs.

    Returns:
        Row -> figure -> difference: its mean over the seeds that both have; where they share fewer
        than two, the difference of their means. The intervals of all rows hold at once, figure by
        figure.

    Raises:
        UserError: two were not evaluated on the same images and objects.
    """
    names = [base, *(name for name in runs if name != base)]
    for name in names[1:]:
        try:
            _check([*runs[base].values(), *runs[name].values()])
        except UserError as error:
            raise UserError(f"{name} and {base}: {error}") from error
    entries = [(row, seed) for row, name in enumerate(names) for seed in runs[name]]
    rows, seeds = np.array(entries, int).T
    values, images = _arrays([runs[names[row]][seed] for row, seed in entries])
    first = trained_as or {}
    same = {row: first.get(name, name) for row, name in enumerate(names)}
    same = {row: names.index(name) if name in names else row for row, name in same.items()}
    alone = {row for row, name in enumerate(names) if name in foreign}
    found = {row: [] for row in range(1, len(names))}
    for row, columns, estimate in differences(values, images, rows, seeds, alone, same):
        found[row].append((columns, estimate))
    return {names[row]: _merged(parts, values) for row, parts in found.items()}


def differences(
    values: np.ndarray,
    images: np.ndarray,
    rows: np.ndarray,
    seeds: np.ndarray,
    alone: Collection[int] = (),
    same: Mapping[int, int] | None = None,
) -> list[tuple[int, np.ndarray, Estimate]]:
    """Differences of rows to the base, row 0, of many figures at once.

    Args:
        values: (N, F), of N runs.
        images: (F, N, N) or (1, N, N), their covariance over images.
        rows, seeds: (N,), of each run.
        alone: rows whose seeds are not the others'.
        same: of each row, the first one that has its trainings.

    Returns:
        Row, columns of `values`, and the estimate, its numbers arrays of these columns.
    """
    others = list(range(1, rows.max() + 1))
    same = same or {row: row for row in (0, *others)}
    mine = {row: set(seeds[rows == row]) for row in (0, *others)}
    shared = {row: mine[0] & mine[row] if row not in alone else set() for row in others}
    in_block = [row for row in others if len(shared[row]) > 1]
    # Of one run each nothing is known of seeds: that is no interval of the table.
    told = sum(len(mine[0]) + len(mine[row]) > 2 for row in others)
    columns = np.arange(values.shape[1])
    found = []
    for row in others:
        if row not in in_block:
            here = np.isin(rows, (0, row))
            part = _unpaired(values[here], images[:, here][:, :, here], rows[here], row)
            found.append((row, columns, replace(part, rows=told if part.spread else 1)))
    weights = {}
    for row in in_block:
        sign = (rows == row).astype(int) - (rows == 0)
        weights[row] = sign * np.isin(seeds, list(shared[row])) / len(shared[row])
    correlation = _lowest_correlation(list(weights.values()))
    members = [
        row for row in in_block if same[row] == row and len(shared[row]) >= pooling.SEEDS_TO_POOL
    ]
    # Of as many seeds as some row has, with all rows that have as many.
    pools = [
        pooling.pool(
            values, images, rows, seeds, [0, *(r for r in members if len(shared[r]) >= count)]
        )
        for count in sorted({len(shared[row]) for row in members})
    ] or [pooling.pool(values, images, rows, seeds, [0])]
    nowhere = np.zeros(len(columns), bool)
    for row in in_block:
        # What has a pooled row's trainings spreads as it does; what has the base's does not.
        pool = max(pools, key=lambda p: p.freedom.max() if same[row] in p.alike else -1)
        pooled = nowhere if same[row] == 0 else pool.alike.get(same[row], nowhere)
        for freedom in np.unique(pool.freedom[pooled]):
            here = columns[pooled & (pool.freedom == freedom)]
            of_images = images[here] if len(images) > 1 else images
            part = _combined(
                values[:, here], of_images, weights[row], pool.spread[here], pool.of_both[here]
            )
            words = dict(freedom=int(freedom), spread="pooled", correlation=correlation)
            found.append((row, here, replace(part, rows=told, **words)))
        if len(here := columns[~pooled]):
            of_images = images[here] if len(images) > 1 else images
            two = np.isin(rows, (0, row))
            part = _estimate(
                values[:, here][two],
                of_images[:, two][:, :, two],
                rows[two],
                seeds[two],
                weights[row][two],
                "own",
            )
            found.append((row, here, replace(part, rows=told)))
    return found


@functools.lru_cache(maxsize=4096)
def _projector(rows: tuple[int, ...], seeds: tuple[int, ...]) -> tuple[np.ndarray, int]:
    """(N, N), what takes rows' and seeds' effects out of N figures, and what freedom is left."""
    parts = [np.equal.outer(labels, np.unique(labels)) for labels in (rows, seeds)]
    design = np.concatenate(parts, axis=1).astype(float)
    left = np.eye(len(rows)) - design @ np.linalg.pinv(design)
    return left, len(rows) - int(np.linalg.matrix_rank(design))


def _unpaired(values: np.ndarray, images: np.ndarray, rows: np.ndarray, row: int) -> Estimate:
    """The difference of the means of one row and row 0, seeds of any kind."""
    ours = rows == row
    weights = ours / ours.sum() - ~ours / (~ours).sum()
    return _estimate(values, images, rows, np.zeros_like(rows), weights, "unpaired")


def _estimate(
    values: np.ndarray,
    images: np.ndarray,
    rows: np.ndarray,
    seeds: np.ndarray,
    weights: np.ndarray,
    spread: str,
) -> Estimate:
    """A weighted sum of runs, of many figures, by what row and seed leave of these runs.

    Args:
        values, images, rows, seeds: as of `differences`.
        weights: (N,)
        spread: what to call that.
    """
    left, freedom = _projector(tuple(rows.tolist()), tuple(seeds.tolist()))
    if not freedom:  # of one run each
        return _combined(values, images, weights)
    over_seeds = np.square(left @ values).sum(0) / freedom
    of_both = np.einsum("nm,fmn->f", left, images) / freedom
    found = _combined(values, images, weights, over_seeds, of_both)
    return replace(found, freedom=freedom, spread=spread)


def _combined(
    values: np.ndarray,
    images: np.ndarray,
    weights: np.ndarray,
    over_seeds: np.ndarray | None = None,
    of_both: np.ndarray | None = None,
) -> Estimate:
    """A weighted sum of runs; of a run, the variance over seeds and what of that is of images."""
    value = weights @ values
    over_images = np.maximum(np.einsum("n,fnm,m->f", weights, images, weights), 0.0)
    over_images = over_images + np.zeros(len(value))
    if over_seeds is None:
        std = np.sqrt(over_images)
        return Estimate(value, std, std, None, math.inf)
    share = np.square(weights).sum()
    over_seeds, of_both = share * over_seeds, share * of_both
    variance = np.maximum(over_images + over_seeds - of_both, np.maximum(over_images, over_seeds))
    return Estimate(
        value, np.sqrt(variance), np.sqrt(over_images), np.sqrt(over_seeds), freedom=math.inf
    )


def _lowest_correlation(weights: Sequence[np.ndarray]) -> float:
    """Of any two sums of independent residuals."""
    if len(weights) < 2:
        return 0.0
    unit = np.array([w / np.linalg.norm(w) for w in weights])
    return round(float((unit @ unit.T).min()), 6)


def _check(runs: Sequence[Draws]) -> None:
    """Raises UserError if they are not of the same images and objects."""
    if len({run.truth for run in runs}) > 1:
        raise UserError(
            "runs were evaluated on different images or objects, or resampled differently: "
            "only those on the same ones can be compared"
        )


def _arrays(runs: Sequence[Draws]) -> tuple[np.ndarray, np.ndarray]:
    """Figures (N, F) of runs, and their covariance over images (F, N, N)."""
    values = np.array([run.values for run in runs])
    images = []
    for drawn in np.array([run.resampled for run in runs]).transpose(2, 0, 1):
        known = drawn[:, ~np.isnan(drawn).any(0)]
        few = known.shape[1] < 2
        images.append(np.full((len(runs),) * 2, np.nan) if few else np.atleast_2d(np.cov(known)))
    return values, np.array(images)


def _by_figure(estimate: Estimate, values: np.ndarray) -> dict[str, Estimate | None]:
    return _merged([(np.arange(values.shape[1]), estimate)], values)


def _merged(
    parts: Sequence[tuple[np.ndarray, Estimate]], values: np.ndarray
) -> dict[str, Estimate | None]:
    """Estimates of arrays, by the names of their figures; None where there is no such object."""
    names = FIGURES[: values.shape[1]]
    found = dict.fromkeys(names)
    for columns, estimate in parts:
        for i, column in enumerate(columns):
            if not np.isnan(values[:, column]).any():
                seeds = estimate.std_seeds
                found[names[column]] = replace(
                    estimate,
                    value=float(estimate.value[i]),
                    std=float(estimate.std[i]),
                    std_images=float(estimate.std_images[i]),
                    std_seeds=None if seeds is None else float(seeds[i]),
                )
    return found


def resample(images: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each image is drawn, (resamples, images)."""
    random = np.random.default_rng(seed)
    drawn = (random.integers(images, size=images) for _ in range(resamples))
    counts = [np.bincount(indexes, minlength=images) for indexes in drawn]
    return np.array(counts, np.int32).reshape(resamples, images)
