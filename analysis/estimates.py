"""A figure with what is known of its error: its interval, and the verdict on a difference."""

import functools
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize, stats

_RARELY = 0.99
_SPENT = 0.4  # of the error of pooled intervals: for rows that are missed


@dataclass(frozen=True)
class Estimate:
    """A figure, or a difference of two, with what is known of its error; AP in 0..100.

    The interval is about the recipes, if there are several seeds; about these trained detectors, if
    there are not. Where `bootstrap` makes them the first four may be arrays, of many figures.

    Attributes:
        value: mean over seeds.
        std: standard error of the value, of both sources.
        std_images: of the value, over resampled images.
        std_seeds: of the value, over seeds; None where each variant has one.
        freedom: degrees of freedom of std_seeds.
        spread: whose seeds std_seeds is of: "pooled" over rows that share them, the row's "own"
            paired differences, "unpaired" (row and base by themselves), or "" where it is None.
        rows: differences of one table, whose intervals hold at once.
        correlation: of any two pooled ones of them over seeds, at least.
        error: what its interval may err; of looks at a table after which seeds are added, each
            one's share of 5 % (`experiments.records.looks`).
    """

    value: float
    std: float
    std_images: float
    std_seeds: float | None
    freedom: float
    spread: str = ""
    rows: int = 1
    correlation: float = 0.0
    error: float = 0.05

    def interval(self, level: float | None = None, sides: int = 2) -> tuple[float, float]:
        """What holds the true value with this probability, and the other rows' with theirs.

        Args:
            level: None: but for `error`.
            sides: 2, or 1: each end by itself holds with `level`.
        """
        level = 1 - self.error if level is None else level
        seeds = 0.0 if self.std_seeds is None else self.std_seeds
        rest = np.sqrt(np.maximum(self.std**2 - seeds**2, 0.0))
        pooled = self.spread == "pooled"
        of_rest, of_seeds = _quantiles(
            level + pooled * _SPENT * (1 - level),
            sides,
            self.freedom,
            self.rows,
            self.correlation if pooled else None,
        )
        half = np.hypot(of_rest * rest, of_seeds * seeds)
        return self.value - half, self.value + half

    def by_itself(self) -> "Estimate":
        """The same, but for the other rows."""
        return replace(self, rows=1)

    def verdict(self, delta: float) -> str:
        """What a difference is, in words; smaller ones than delta are of no interest.

        "equal within ±delta": two one-sided tests, each at `error`, refuse that it is delta or
        more, either way (Schuirmann, 1987), even if it is not 0; else "better" or "worse": its
        interval is on one side of 0; else "undecided".
        """
        low, high = self.interval(sides=1)
        if -delta < low and high < delta:
            return f"equal within ±{delta:g}"
        low, high = self.interval()
        return "better" if low > 0 else "worse" if high < 0 else "undecided"


@functools.cache
def _quantiles(
    level: float, sides: int, freedom: float, rows: int, correlation: float | None
) -> tuple[float, float]:
    """Quantiles, normal and Student's, that all of a table's intervals hold with at once.

    Whatever rows have in common makes that likelier (Sidak, Rectangular Confidence Regions for the
    Means of Multivariate Normal Distributions, 1967); where they share their spread and the base's
    seeds, how much likelier is known (Dunnett).

    Args:
        correlation: of rows that share their spread; None: they do not.
    """
    one = 1 - (1 - level ** (1 / rows)) / sides
    normal = float(stats.norm.ppf(one))
    # Rarely wrong: what Dunnett's would gain is less than the error of its integral.
    if correlation is None or rows == 1 or level > _RARELY:
        return normal, float(stats.t.ppf(one, freedom))
    shape = np.where(np.eye(rows, dtype=bool), 1.0, correlation)

    def more(quantile: float) -> float:
        ends = np.full(rows, quantile)
        lower = None if sides == 1 else -ends
        words = dict(shape=shape, df=freedom, lower_limit=lower, random_state=0)
        return float(stats.multivariate_t.cdf(ends, **words)) - level

    bounds = [stats.t.ppf(1 - (1 - level) / sides / n, freedom) for n in (1, rows)]
    return normal, float(optimize.brentq(more, bounds[0], 1.02 * bounds[1], xtol=1e-3))
