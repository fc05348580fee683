"""Do verdicts err as rarely as they say where seeds are added until they are decided: simulated
studies, as of `analysis.coverage`, that are looked at as `SEEDS=auto` looks.

Rows that are decided get no more seeds, the others and the base do, up to the last look that is
planned for. What is counted is `bootstrap.differences` with each look's share of the error.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from experiments.records import looks

from . import bootstrap, coverage

DRAWS = 2_000  # studies of each case
EFFECT = 2.8  # standard deviations of what row and seed leave of a run
_DELTA = 2.0  # AP, of no interest
NOTHING, SOMETHING, BOUNDARY = "none", f"{EFFECT:g} sd", "boundary"


class Case(NamedTuple):
    """What is simulated: spreads and correlation as of `coverage.Case`, rows with the base, and
    what the rows differ from the base by: nothing; `EFFECT`, all of them; or the boundary of what
    is of no interest, set there, rows in turn above and below."""

    spreads: str
    rows: int
    correlation: float
    effect: str


def cases() -> list[Case]:
    """All of them."""
    found = [Case(name, 5, 0.7, NOTHING) for name in coverage.LAYOUTS]
    found += [Case("alike", 5, 0, NOTHING), *(Case("alike", n, 0.7, NOTHING) for n in (3, 11))]
    return found + [Case("alike", 5, 0.7, effect) for effect in (SOMETHING, BOUNDARY)]


class _Simulated(NamedTuple):
    """Of many studies, (rows less the base, draws)."""

    wrong: np.ndarray  # decided, and not so
    seeds: np.ndarray
    decided: np.ndarray
    looks: np.ndarray


def simulate(
    case: Case, draws: int, error: Callable[[int], float] = looks.error, seed: int = 0
) -> _Simulated:
    """Studies of AP that are looked at until all rows are decided.

    Args:
        error: of the first, second, ... look.
    """
    sizes = looks.seeds_of()
    layout = coverage.Case(case.spreads, case.rows, sizes[-1], case.correlation)
    random = np.random.default_rng([seed, case.rows])
    of_images = coverage.FIGURES["AP"]
    values, images, rows, seeds, _ = coverage.studies(layout, of_images, draws, random)
    effect = EFFECT * np.sqrt(
        (1 - case.correlation) * coverage.LIKE**2 + (coverage.RUNS_OWN * of_images) ** 2
    )
    delta = effect if case.effect == BOUNDARY else _DELTA
    others = case.rows - 1
    truth = np.full(others, 0.0 if case.effect == NOTHING else effect)
    truth *= np.where(np.arange(others) % 2 & (case.effect == BOUNDARY), -1, 1)
    values += np.append(0, truth)[rows, None]
    shape = (others, draws)
    found = _Simulated(*(np.zeros(shape, kind) for kind in (bool, int, bool, int)))
    for look, size in enumerate(sizes, start=1):
        found.seeds[~found.decided] = size
        found.looks[~found.decided] = look
        running = np.flatnonzero(~found.decided.all(0))
        before = found.decided.copy()
        # Of studies whose rows have the same numbers of seeds.
        patterns, which = np.unique(found.seeds[:, running], axis=1, return_inverse=True)
        for number, pattern in enumerate(patterns.T):
            columns = running[which.ravel() == number]
            here = seeds < np.append(size, pattern)[rows]
            of_runs = images[:, here][:, :, here]
            parts = (values[here][:, columns], of_runs, rows[here], seeds[here])
            for row, some, estimate in bootstrap.differences(*parts):
                estimate = replace(estimate, error=error(look), rows=others)
                at = columns[some]
                low, high = estimate.interval(sides=1)
                equal = (-delta < low) & (high < delta)
                low, high = estimate.interval()
                better, worse = (low > 0) & ~equal, (high < 0) & ~equal
                true = truth[row - 1]
                wrong = better & (true <= 0) | worse & (true >= 0) | equal & (abs(true) >= delta)
                now = ~before[row - 1, at]
                found.wrong[row - 1, at] |= wrong & now
                found.decided[row - 1, at] |= (equal | better | worse) & now
    return found


def measure(case: Case, draws: int) -> dict[str, float]:
    """Of one case, in %: studies with a `false` verdict, those there would be if each look might
    err in 5 % (`uncorrected`, of the first case alone: it takes time), rows that are `decided` in
    the end; and means of their `looks` and `seeds`."""
    found = simulate(case, draws)
    careless = simulate(case, draws, lambda look: 0.05).wrong if case in cases()[:1] else None
    return {
        "false": 100 * found.wrong.any(0).mean(),
        "uncorrected": np.nan if careless is None else 100 * careless.any(0).mean(),
        "decided": 100 * found.decided.mean(),
        "looks": found.looks.mean(),
        "seeds": found.seeds.mean(),
    }


def run(chosen: Sequence[Case], draws: int = DRAWS) -> pd.DataFrame:
    """A line per case: its words, and what `measure` counts; `attrs` has how many studies."""
    table = pd.DataFrame([case._asdict() | measure(case, draws) for case in chosen])
    table.attrs["draws"] = draws
    return table


def text(found: pd.DataFrame) -> pd.DataFrame:
    """As text cells."""
    digits = dict(correlation="{:g}", false="{:.1f}", uncorrected="{:.1f}", decided="{:.0f}")
    digits |= dict(looks="{:.1f}", seeds="{:.1f}", rows="{}")
    cells = found.copy().astype(object)
    for column, form in digits.items():
        cells[column] = ["" if pd.isna(v) else form.format(v) for v in found[column]]
    return cells.rename(columns={"correlation": "corr."})


CAPTION = f"""\
Of {{draws}} simulated studies each, as in coverage.md, AP; looked at with {{sizes}} seeds until
every row is decided. corr.: of two rows' runs of one seed. effect: what the rows differ from the
base by: nothing; {EFFECT:g} standard deviations of what row and seed leave of a run; the boundary
of what is of no interest, which is {_DELTA:g} AP elsewhere. false: % of
studies with a verdict that is not so (better or worse of rows that do not differ, equal of rows at
the boundary); uncorrected: that, if each look might err in 5 %; decided: % of rows in the end;
looks, seeds: means of rows.
"""


def write(found: pd.DataFrame, folder: Path) -> list[Path]:
    """looks.md and looks.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"looks.{suffix}" for suffix in ("md", "csv")]
    sizes = looks.seeds_of()
    counts = f"{', '.join(map(str, sizes[:-1]))} and {sizes[-1]}"
    caption = CAPTION.format(draws=f"{found.attrs['draws']:,}", sizes=counts)
    title = "False verdicts where seeds are added until decided"
    files[0].write_text(coverage.page(title, text(found), caption))
    found.to_csv(files[1], index=False, float_format="%.3f")
    return files
