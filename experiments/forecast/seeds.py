"""Seeds that are added until every verdict is decided: which rows get how many next, and whether
that fits a budget.

A budget is of the runs' own hours by the clock, as their records have them, added up, those that
were done before among them: so it is the same whatever launcher they run by and however often the
command is stopped and goes on. Waiting for a cluster is not in it.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..jobs.planned import Run
from ..jobs.runs import Row
from ..launching import Launcher
from ..records import LAST_WEIGHTS, MANIFEST, RECORD, looks, read, read_json
from ..studies import Study

AUTO = "auto"
DECIDED = ("better", "worse", "equal")
_HOURS = dict(s=1 / 3600, m=1 / 60, h=1.0, d=24.0)
_LEAST = 2  # seeds: of one there is no verdict


@dataclass(frozen=True)
class Limits:
    """Of `SEEDS=auto`."""

    most: int  # seeds of a row
    budget: str  # as it was said; "": none

    @property
    def hours(self) -> float:
        """The budget."""
        if not self.budget:
            return math.inf
        return float(self.budget[:-1]) * _HOURS[self.budget[-1]]


def parse(seeds: str, most: int | None, budget: str) -> int | Limits:
    """What --seeds, --max-seeds and --budget mean: a number, 0 for the study's, or limits.

    Raises:
        UserError: one of them is of no such form, or goes with `AUTO` only.
    """
    if seeds != AUTO:
        if not re.fullmatch(r"\d+", seeds):
            raise UserError(f"--seeds {seeds} is no integer from 0 on, and not {AUTO}")
        if most is not None or budget:
            raise UserError("BUDGET= and MAX_SEEDS= go with SEEDS=auto: say that, or leave them")
        return int(seeds)
    if most is not None and most < _LEAST:
        raise UserError(f"MAX_SEEDS={most}: a verdict needs {_LEAST} seeds at least")
    if budget and not (re.fullmatch(r"(\d+\.?\d*|\.\d+)[smhd]", budget)):
        raise UserError(f"BUDGET={budget} is no time: 90m, 2h or 1.5d")
    return Limits(most or looks.seeds_of()[-1], budget)


def last_asked(folder: Path) -> set[tuple[str, str]]:
    """Rows and names of the runs that the last command at a study asked for; none if that is not
    known: the next command writes a broken manifest anew."""
    try:
        runs = read_json(folder / MANIFEST)["runs"]
        return {(run["variant"], Path(run["folder"]).name) for run in runs}
    except (UserError, KeyError, TypeError):
        return set()


def asked_for(last: set[tuple[str, str]], planned: Iterable[Run]) -> dict[str, int]:
    """Of each row, how many of the planned runs were.

    Args:
        last: as of `last_asked`.
    """
    found: dict[str, int] = {}
    for run in planned:
        if (run.variant, Path(run.folder).name) in last:
            found[run.variant] = max(found.get(run.variant, 0), run.seed + 1)
    return found


def first(rows: Sequence[Row], asked: Mapping[str, int], limits: Limits) -> dict[str, int]:
    """How many seeds of each row are wanted before anything is said: those of a first look, or what
    was asked for last. None has more than the base, which is the first.

    Raises:
        UserError: there is nothing to compare.
    """
    if len(rows) < 2:
        raise UserError(
            f"SEEDS=auto compares rows with the first, {rows[0].variant.name}: give another one"
        )
    names = [row.variant.name for row in rows]
    counts = {name: min(max(looks.FIRST, asked.get(name, 0)), limits.most) for name in names}
    return counts | {names[0]: max(counts.values())}


def more(counts: Mapping[str, int], still: Iterable[str], most: int) -> list[dict[str, int]]:
    """What each row may have next, the most seeds first: of rows that are not decided, and of the
    base, the first of all, which has as many as any. Empty: they have all there may be."""
    steps = []
    for following in (looks.following, lambda seeds: seeds + 1):
        new = dict(counts) | {row: min(following(counts[row]), most) for row in still}
        new[next(iter(new))] = max(new.values())
        if new != counts and new not in steps:
            steps.append(new)
    return steps


def spent(runs: Iterable[Run]) -> dict[str, list[float]]:
    """Hours of the runs that are done, by row; those of a shared training once."""
    found: dict[str, list[float]] = {}
    for run in runs:
        folder = Path(run.folder)
        if run.done:
            record = read(folder / RECORD)
            seconds = record.evaluate_seconds
            if not (folder / LAST_WEIGHTS).is_symlink():
                seconds += record.train_seconds
            found.setdefault(run.variant, []).append(seconds / 3600)
    return found


def forecast(study: Study, rows: Sequence[Row], launcher: Launcher) -> dict[str, float]:
    """Hours of one run of each row, before there is any; NaN if it does not fit. What does not run
    here is taken to be on A100s, if this machine has no GPU."""
    from . import plan  # takes a second

    processes = launcher.processes
    where = plan.target(rows, "", processes if processes > 1 or not launcher.here else 0)
    found = plan.estimate(study, rows, where, val_images=0)
    spread = processes > 1 and not where.on_cpu
    return {e.variant: e.spread_hours if spread else e.hours for e in found}


def hours(
    runs: Iterable[Run], known: Mapping[str, list[float]], guessed: Mapping[str, float]
) -> float:
    """What runs that are not done will take.

    Args:
        known: as of `spent`: what a row took, or all of them, tells most.
        guessed: as of `forecast`, where nothing is known.
    """
    every = [value for values in known.values() for value in values]

    def of(row: str) -> float:
        values = known.get(row) or every or [guessed[row]]
        return sum(values) / len(values)

    return sum(of(run.variant) for run in runs if not run.done)


def fits(
    limits: Limits,
    runs: Iterable[Run],
    known: Mapping[str, list[float]],
    guessed: Mapping[str, float],
) -> bool:
    """Whether runs end within the budget, after those that are done; as of `hours`."""
    return hours(runs, known, guessed) + sum(map(sum, known.values())) <= limits.hours


def check_fits(
    limits: Limits,
    runs: Sequence[Run],
    known: Mapping[str, list[float]],
    guessed: Mapping[str, float],
) -> None:
    """Raises UserError if those of a first look do not."""
    if not fits(limits, runs, known, guessed):
        from .budget import duration  # takes a second

        todo = [run for run in runs if not run.done]
        needs = hours(todo, known, guessed)
        if math.isnan(needs):
            raise UserError(
                f"BUDGET={limits.budget} needs to know what a run takes, and the plan has no hours "
                "of all rows (make plan says why): run SEEDS=1 first"
            )
        before = sum(map(sum, known.values()))
        already = f", beside {duration(before)} of those that are done" * (before > 0)
        raise UserError(
            f"BUDGET={limits.budget} fits no look at verdicts: it takes {len(todo)} runs, about "
            f"{duration(needs)}{already}: give more, fewer rows (VARIANTS=), "
            f"or MAX_SEEDS={_LEAST}"
        )


def said(verdicts: Mapping[str, str], rows: Sequence[str]) -> tuple[str, list[str]]:
    """What was said of rows, in words; and those of which nothing was decided."""
    words = {row: verdicts.get(row, "").partition(" within")[0] or "no verdict" for row in rows}
    still = [row for row, word in words.items() if word not in DECIDED]
    return ", ".join(f"{row} {word}" for row, word in words.items()), still
