"""Is it the recipe? Each row at several values of one config key, and then at its own best.

The best is chosen by runs of a seed of their own (`SEED`), which no comparison has: a row is not
ahead because it was the luckiest of its own tries.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ..errors import UserError
from ..evaluation import reach
from ..recipe import resolved
from ..recipe.words import check_overrides, number
from ..records import NOT_IDENTITY, RECORD, read
from ..studies import Study, Words
from .runs import DetectionRun, Row

SEED = 1000  # that chooses; those compared are 0, 1, ...


@dataclass(frozen=True)
class Sweep:
    """One config key, and what its value in a row's recipe is multiplied by."""

    key: str
    factors: tuple[float, ...]


def parse(text: str) -> Sweep | None:
    """ "optimizer.lr=0.5,1,2"; "": no sweep.

    Raises:
        UserError: not of that form, or without 1, the recipe as it is.
    """
    if not text:
        return None
    key, _, values = text.partition("=")
    try:
        factors = tuple(float(value) for value in values.split(","))
    except ValueError:
        factors = ()
    if not key or not factors or not all(0 < f < math.inf for f in factors):
        raise UserError(
            f"SWEEP={text} is not of the form optimizer.lr=0.5,1,2: a config key and factors above "
            "0 on each row's value"
        )
    if 1 not in factors:
        raise UserError(f"SWEEP={text} lacks the factor 1, the recipe as it is: add it")
    if len(set(factors)) < len(factors) or len(factors) < 2:
        raise UserError(f"SWEEP={text} needs two or more factors, each once")
    if key in NOT_IDENTITY:
        raise UserError(f"SWEEP={text}: {key} does not change what a run finds")
    check_overrides({key: None}, "SWEEP")
    return Sweep(key, tuple(sorted(factors)))


def rows_of(
    sweep: Sweep, study: Study, scale: str, rows: Sequence[Row], overrides: Words
) -> dict[str, dict[float, Row]]:
    """Each row at each factor, by its name; at 1 the row itself.

    Raises:
        UserError: it has no such key, no number there, or a value that does not fit.
    """
    return {
        row.variant.name: {
            factor: row
            if factor == 1
            else Row(
                row.variant,
                row.size,
                resolved.resolve(
                    study,
                    row.variant,
                    scale,
                    row.size,
                    {**overrides, sweep.key: value(sweep, row.cfg, factor)},
                ),
            )
            for factor in sweep.factors
        }
        for row in rows
    }


def value(sweep: Sweep, cfg: DictConfig, factor: float) -> float:
    """Of the key, in a row whose config is `cfg`, at a factor.

    Raises:
        UserError: as of `rows_of`.
    """
    found = number(cfg, sweep.key, "SWEEP")
    if not found:
        raise UserError(f"SWEEP: {sweep.key}={found} is 0 at any factor")
    times = found * factor
    if isinstance(found, int):
        if not math.isclose(times, round(times)):  # 100 times 1.1 is a little more
            raise UserError(
                f"SWEEP: {sweep.key}={found} times {factor:g} is no whole number: choose factors "
                "that make one"
            )
        times = round(times)
    return times


def best(runs: Mapping[float, DetectionRun]) -> float:
    """The factor whose run, all of which are done, has the highest box AP; of equal ones that
    nearest to 1. Runs that did not learn the data's cue come last: their AP is luck."""

    def rank(factor: float) -> tuple[bool, float, float]:
        record = read(Path(runs[factor].folder) / RECORD)
        learned = record.reach is None or reach.learned(record.reach)
        return learned, record.box.get("AP") or 0.0, -abs(math.log(factor))

    return max(runs, key=rank)


def words(
    sweep: Sweep | None,
    runs: Mapping[str, Mapping[float, DetectionRun]],
    chosen: Mapping[str, float],
    folder: Path,
) -> dict[str, Any] | None:
    """What the manifest in `folder` has of a sweep: its key and seed, its runs, and what was
    chosen of each row, once it is."""
    if not sweep:
        return None
    tried = [
        dict(
            variant=name,
            factor=factor,
            value=OmegaConf.select(run.cfg, sweep.key),
            folder=os.path.relpath(run.folder, folder),
        )
        for name, at in runs.items()
        for factor, run in at.items()
    ]
    return dict(key=sweep.key, seed=SEED, runs=tried, chosen=dict(chosen))
