"""Do intervals and verdicts hold what they say: simulated studies whose true differences are known.

An AP is row + seed + residual, normal, and has an error over images, of which a part is the row's
and a part each run's own. All true differences are 0, or, for verdicts of equality, at the boundary
of what is of no interest, rows in turn above and below. What is counted is `bootstrap.differences`
itself, of many studies at once.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from experiments.costs import environment

from . import bootstrap, tables

DRAWS = 10_000  # studies of each case and figure
# Standard deviation over images of a row, and of each run beside it, in AP.
FIGURES = {"AP": 1.0, "APs": 2.0, "APm": 1.5, "APl": 4.0}
RUNS_OWN = 0.5  # times that
LIKE, LITTLE, MUCH = 10.0, 2.0, 18.0  # AP: standard deviations over seeds
# Which rows spread much, the others little.
LAYOUTS = {
    "alike": (),
    "one row": (-1,),
    "the base": (0,),
    "every second row": (slice(1, None, 2),),
}
FOREIGN = "alike, one run foreign"


class Case(NamedTuple):
    """What is simulated: spreads of `LAYOUTS` or `FOREIGN`, rows with the base, seeds, and the
    correlation of two rows' runs of one seed."""

    spreads: str
    rows: int
    seeds: int
    correlation: float


def cases(rows: Sequence[int] = (3, 4, 11), seeds: Sequence[int] = (2, 3, 4, 5, 8)) -> list[Case]:
    """All of them."""
    return [Case(*words) for words in itertools.product((*LAYOUTS, FOREIGN), rows, seeds, (0, 0.7))]


def stds(case: Case) -> np.ndarray:
    """Of each row over seeds."""
    if case.spreads in ("alike", FOREIGN):
        return np.full(case.rows, LIKE)
    found = np.full(case.rows, LITTLE)
    for where in LAYOUTS[case.spreads]:
        found[where] = MUCH
    return found


def studies(case: Case, of_images: float, draws: int, random: np.random.Generator) -> tuple:
    """Figures of many studies, as `bootstrap.differences` takes them.

    Args:
        of_images: standard deviation over images of a row.

    Returns:
        values (N, draws), images (1, N, N), rows (N,), seeds (N,), alone; all true means are 0.
    """
    rows, seeds = (part.ravel() for part in np.indices((case.rows, case.seeds)))
    alone = []
    if case.spreads == FOREIGN:
        kept = (rows < case.rows - 1) | (seeds == 0)
        rows, seeds = rows[kept], seeds[kept]
        seeds[-1], alone = case.seeds, [case.rows - 1]  # a seed of its own
    runs = len(rows)
    blocks = random.standard_normal((case.seeds + 1, draws))[seeds]
    own = random.standard_normal((runs, draws))
    share = case.correlation
    values = stds(case)[rows, None] * (np.sqrt(share) * blocks + np.sqrt(1 - share) * own)
    values += of_images * random.standard_normal((case.rows, draws))[rows]
    values += RUNS_OWN * of_images * random.standard_normal((runs, draws))
    images = of_images**2 * (np.equal.outer(rows, rows) + RUNS_OWN**2 * np.eye(runs))
    return values, images[None], rows, seeds, alone


def measure(case: Case, of_images: float, draws: int, seed: int = 0) -> dict[str, float]:
    """Of one case and figure, in %: `each` (intervals by themselves that hold the difference),
    `row` (those of the row where they are the fewest), `table` (all intervals of a table hold),
    `equal` (rows at the boundary that are called equal), `pooled` (of intervals); and `half`, the
    median half-width of a table's intervals, AP."""
    random = np.random.default_rng([seed, case.rows, case.seeds])
    values, images, rows, seeds, alone = studies(case, of_images, draws, random)
    count = case.rows
    held, alone_held, missed = (np.zeros((count, draws), bool) for _ in range(3))
    pooled, half = np.zeros((count, draws), bool), np.zeros((count, draws))
    for row, columns, found in bootstrap.differences(values, images, rows, seeds, alone):
        low, high = found.interval()
        held[row, columns] = (low <= 0) & (high >= 0)
        half[row, columns] = (high - low) / 2
        pooled[row, columns] = found.spread == "pooled"
        low, high = found.by_itself().interval()
        alone_held[row, columns] = (low <= 0) & (high >= 0)
        low, high = found.interval(sides=1)
        missed[row, columns] = high < 0 if row % 2 else low > 0
    return {
        "each": 100 * alone_held[1:].mean(),
        "row": 100 * alone_held[1:].mean(1).min(),
        "table": 100 * held[1:].all(0).mean(),
        "equal": 100 * missed[1:].mean(),
        "pooled": 100 * pooled[1:].mean(),
        "half": float(np.median(half[1:])),
    }


def run(chosen: Sequence[Case], draws: int = DRAWS) -> pd.DataFrame:
    """A line per case and figure: the words of both, and what `measure` counts; `attrs` has how
    many studies each is of."""
    lines = [
        case._asdict() | {"figure": figure} | measure(case, of_images, draws)
        for case in chosen
        for figure, of_images in FIGURES.items()
    ]
    table = pd.DataFrame(lines)
    table.attrs["draws"] = draws
    return table


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """Lowest and highest of each layout and number of seeds, as text cells."""
    lines = []
    for (spreads, seeds), part in found.groupby(["spreads", "seeds"], sort=False):
        each = f"{part['each'].min():.1f} .. {part['each'].max():.1f}"
        half = part[part["figure"] == "AP"].groupby("correlation")["half"].median()
        lines.append(
            {
                "spreads": spreads,
                "seeds": str(seeds),
                "each": each,
                "row": f"{part['row'].min():.1f}",
                "table": f"{part['table'].min():.1f}",
                "equal": f"{part['equal'].max():.1f}",
                "pooled": f"{part['pooled'].mean():.0f}",
                "half-width": " / ".join(f"{value:.1f}" for value in half),
            }
        )
    return pd.DataFrame(lines)


CAPTION = f"""\
Per cent; of studies of {{rows}} rows, of block correlations {{correlation}}, of AP and of AP of
small, medium and large objects (whose errors over images are {{images}} AP), of {{draws}} simulated
studies each; each, row, table and equal are the lowest or the highest of them. Spreads over seeds
are {LIKE:g} AP where alike, else {MUCH:g} beside {LITTLE:g}. each: 95 % intervals, every one by
itself, that hold the true difference; row: those of the row where they are the fewest; table:
tables all of whose intervals hold, as they stand there; equal: rows at the boundary of what is of
no interest that are called equal; pooled: the mean share of intervals of all rows' seeds;
half-width: the median of AP's over numbers of rows, at these correlations.
"""


def write(found: pd.DataFrame, folder: Path) -> list[Path]:
    """coverage.md and coverage.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"coverage.{suffix}" for suffix in ("md", "csv")]
    words = dict(
        rows=", ".join(map(str, found["rows"].unique())),
        correlation=" and ".join(f"{value:g}" for value in found["correlation"].unique()),
        images=", ".join(f"{value:g}" for value in FIGURES.values()),
        draws=f"{found.attrs['draws']:,}",
    )
    title = "Coverage of intervals, error rates of verdicts"
    files[0].write_text(page(title, summary(found), CAPTION.format(**words)))
    found.to_csv(files[1], index=False, float_format="%.3f")
    return files


def page(title: str, table: pd.DataFrame, caption: str) -> str:
    """What was simulated, as Markdown, with the command and the commit that it is of."""
    lines = [
        f"# {title}",
        "",
        tables.render(table),
        "",
        tables.wrapped(caption.replace("\n", " ").strip()),
        "",
        "- command: `make coverage`",
        f"- commit: {environment.git_commit()}",
        "",
    ]
    return "\n".join(lines)
