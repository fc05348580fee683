"""Which rows of a study spread alike over seeds, and what their residuals say together."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

# Whether a row spreads as the others do is an F test of its residuals against theirs, at `_ALIKE`,
# or so much more strictly that one that spreads `_UNLIKE` times as much is missed in `_MISSED` of
# studies: what fails has an interval of its own. What chance alone would hardly bring about
# (`_SURELY`) is taken out of the others' spread, too. Where a row spreads far less than the others
# that are left (`_LITTLE`), some of these hide each other, and nothing is pooled. Two seeds say
# nothing of a row's spread.
_ALIKE, _SURELY, _LITTLE = 0.05, 0.001, 0.015
_UNLIKE, _MISSED = 9.0, 0.05
SEEDS_TO_POOL = 3


class Pool(NamedTuple):
    """What rows that share seeds know together, of F figures."""

    alike: dict[int, np.ndarray]  # of a row, where it and the base may use it, (F,) bool
    spread: np.ndarray  # (F,) variance of a run's residual
    of_both: np.ndarray  # (F,) of that, over images
    freedom: np.ndarray  # (F,)


def pool(
    values: np.ndarray,
    images: np.ndarray,
    rows: np.ndarray,
    seeds: np.ndarray,
    members: Sequence[int],
) -> Pool:
    """Residuals of AP = row + seed, over the seeds that all members have, the base first."""
    figures = values.shape[1]
    common = sorted(set.intersection(*(set(seeds[rows == row]) for row in members)))
    n = len(common)
    if len(members) < 3 or n < SEEDS_TO_POOL:
        nothing = np.zeros(figures)
        return Pool({}, nothing, nothing, nothing)
    at = np.array(
        [[np.flatnonzero((rows == r) & (seeds == s))[0] for s in common] for r in members]
    )
    ours = values[at] - values[at].mean(1, keepdims=True)
    products = np.einsum("vsf,wsf->vwf", ours, ours)
    blocks = images[:, at][:, :, :, at]  # (F, rows, seeds, rows, seeds)
    of_images = np.einsum("fvsws->vwf", blocks) - np.einsum("fvswt->vwf", blocks) / n
    of_images = np.broadcast_to(of_images, products.shape)

    def lenient(freedom: int, of_rest: int) -> float:
        found = stats.f(freedom, of_rest)
        return min(found.ppf(1 - _ALIKE), _UNLIKE**2 * found.ppf(_MISSED))

    kept = _sorted_out(products, n, lambda *freedom: stats.f.ppf(1 - _SURELY, *freedom))
    alike = _sorted_out(products, n, lenient)
    least = _limits(len(members), n, lambda *freedom: stats.f.ppf(_LITTLE, *freedom))
    little = alike & (_ratios(products, alike) < least[alike.sum(0)])
    alike &= kept & ~little.any(0)
    count = kept.sum(0)
    alike &= alike[0] & (count > 2)
    freedom = (count - 1) * (n - 1)
    return Pool(
        dict(zip(members, alike, strict=True)),
        _residuals(products, kept)[0] / freedom,
        _residuals(of_images, kept)[0] / freedom,
        freedom,
    )


def _sorted_out(products: np.ndarray, n: int, allowed: Callable[[int, int], float]) -> np.ndarray:
    """Rows whose spreads do not differ beyond what is allowed: (rows, F) bool.

    The row that spreads the most beyond the others is taken out until none is left to take.

    Args:
        products: of `_residuals`.
        n: seeds.
        allowed: the largest ratio of a row's mean square to that of the rest, by their freedom.
    """
    kept = np.ones(products[0].shape, bool)
    limits = _limits(len(kept), n, allowed)
    while True:
        excess = np.where(kept, _ratios(products, kept), -1.0) - limits[kept.sum(0)]
        worst, refused = excess.argmax(0), (excess.max(0) > 0) & (kept.sum(0) > 2)
        if not refused.any():
            return kept
        kept[worst[refused], refused] = False


def _limits(rows: int, n: int, quantile: Callable[[int, int], float]) -> np.ndarray:
    """Of a row's mean square to that of the rest, by the number of rows; NaN of less than three."""
    found = [quantile(n - 1, (count - 2) * (n - 1)) for count in range(3, rows + 1)]
    return np.array([np.nan] * 3 + found)


def _ratios(products: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Of each kept row's mean square to that of the other kept ones, (rows, F)."""
    whole, rest = _residuals(products, kept)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (whole - rest) / rest * (kept.sum(0) - 2)
    # Runs that do not differ at all are alike.
    return np.nan_to_num(ratio, nan=1.0, posinf=np.inf)


def _residuals(products: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of squares that AP = row + seed leaves.

    Args:
        products: (rows, rows, F), sums over seeds of the products of two rows' deviations from
            their means.
        kept: (rows, F), rows that count.

    Returns:
        Of the kept rows, (F,); of these without each one, (rows, F).
    """
    count = kept.sum(0)
    squares = np.einsum("vvf->vf", products) * kept
    across = np.einsum("vwf,wf->vf", products, kept) * kept
    of_rows, of_seeds = squares.sum(0), across.sum(0)
    left = of_rows - of_seeds / np.maximum(count, 1)
    rest = of_rows - squares - (of_seeds - 2 * across + squares) / np.maximum(count - 1, 1)
    return np.maximum(left, 0.0), np.maximum(rest, 0.0)
