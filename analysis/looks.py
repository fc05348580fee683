"""Which look at a study's verdicts a table is: seeds that are added because of what one said are
another look, and each look has its share of the error (`experiments.records.looks`).

A row's look is known by the row's runs: the same runs again are the same look, seen among the runs
that all rows had then, whatever other rows have had since. What was said of a row stands, so, until
it has new runs itself.
"""

import contextlib
import datetime
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.errors import UserError
from experiments.records import looks
from experiments.records.looks import error, read

from .estimates import Estimate


@dataclass(frozen=True)
class Look:
    """At one row: the `number`-th, when the rows had these `runs` (as of `looks.read`)."""

    number: int
    runs: Mapping[str, tuple[str, ...]]
    new: bool  # nobody has seen it before
    gone: int = 0  # other rows that got a verdict against these runs of the base, and are left out

    @property
    def error(self) -> float:
        """What it may err."""
        return error(self.number)


def check(manifest: Mapping[str, Any]) -> None:
    """Raises UserError if a row of a study was asked for with seeds that its base lacks."""
    seeds: dict[str, set[int]] = {}
    for run in manifest["runs"]:
        seeds.setdefault(run["variant"], set()).add(run["seed"])
    base = manifest["base"]
    for row, mine in seeds.items():
        if others := sorted(mine - seeds.get(base, set())):
            raise UserError(
                f"{row} has other seeds than the base {base} ({', '.join(map(str, others))}): "
                "verdicts are of shared seeds, run both with the same SEEDS="
            )


def name_of(path: str) -> str:
    """Of a run with a record there: its folder's, which ends in its fingerprint."""
    return Path(path).parent.name


def runs_of(records: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """Of each row its runs' names, by seed."""
    if records.empty:
        return {}
    named = records.sort_values("seed").groupby("variant", sort=False)["path"]
    return {row: tuple(map(name_of, paths)) for row, paths in named}


def among(records: pd.DataFrame, runs: Mapping[str, tuple[str, ...]]) -> pd.DataFrame:
    """Those of the records that a look was at."""
    known = [
        name_of(path) in runs.get(row, ())
        for row, path in zip(records["variant"], records["path"], strict=True)
    ]
    return records[known]


def number(
    past: Iterable[Mapping[str, Any]], base: str, runs: Mapping[str, tuple[str, ...]]
) -> dict[str, Look]:
    """Of each row but the base, which look at it these runs are.

    Args:
        past: as of `looks.read`.

    Returns:
        Of rows that have runs beside some of the base.
    """
    found = {}

    def shared(look: Mapping[str, Any], row: str) -> bool:
        return bool(set(look["runs"].get(row, ())) & set(runs.get(row, ())))

    # Looks at other runs, of another config or data set, in the same folder do not count.
    past = [look for look in past if shared(look, base)]
    # Whoever leaves rows out because of what was said of them has chosen among all.
    gone = len({row for look in past for row in look["said"]} - runs.keys())
    for row, mine in runs.items():
        if row == base or base not in runs:
            continue
        seen: dict[tuple[str, ...], Mapping] = {}
        for look in past:
            if row in look["said"] and shared(look, row):
                seen.setdefault(tuple(look["runs"][row]), look["runs"])
        known = list(seen)
        if mine in seen:
            then = {name: tuple(names) for name, names in seen[mine].items()}
            found[row] = Look(known.index(mine) + 1, then, new=False, gone=gone)
        else:
            found[row] = Look(len(known) + 1, runs, new=True, gone=gone)
    return found


def keep(folder: Path, delta: float, said: Mapping[str, tuple[Look, Estimate, str]]) -> None:
    """Note the new ones among them, with what was said of their rows; a folder that cannot be
    written to keeps none."""
    new = {row: part for row, part in said.items() if part[0].new}
    if not new:
        return
    words = {}
    for row, (look, estimate, verdict) in new.items():
        low, high = estimate.interval()
        numbers = dict(diff=float(estimate.value), low=float(low), high=float(high))
        words[row] = dict(look=look.number, error=look.error, seeds=len(look.runs[row]))
        words[row] |= dict(verdict=verdict, **{k: round(v, 3) for k, v in numbers.items()})
    entry = dict(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        delta=delta,
        runs=next(iter(new.values()))[0].runs,
        said=words,
    )
    with contextlib.suppress(OSError):
        looks.write(folder, [*read(folder), entry])


def notes(said: Mapping[str, tuple[Look, Estimate, str]]) -> list[str]:
    """How many looks the verdicts took, a line for each number of them."""
    groups: dict[tuple[int, int], list[str]] = {}
    for row, (look, _, verdict) in said.items():
        words = f"{row} ({verdict.partition(' within')[0]})"
        groups.setdefault((look.number, len(look.runs[row])), []).append(words)
    return [
        f"look {number}, of {seeds} seeds, which may err in {100 * error(number):.2g} %: "
        + ", ".join(rows)
        for (number, seeds), rows in sorted(groups.items())
    ]
