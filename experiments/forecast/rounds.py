"""What a command for a study comes to: what is to run now, and, once it has, what next.

A study with a number of seeds is one round. A sweep has one before it, whose runs choose each row's
value. With `SEEDS=auto` each round is followed by a look at
the verdicts: rows that are not decided get more seeds in the next one. Called again, the same
command goes on with the round that was last asked for: the manifest has it.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rich.console import Console

from ..data import annotations, catalog, pretraining_images
from ..data.catalog import Data
from ..errors import UserError
from ..jobs import pretraining_runs, sweep
from ..jobs import runs as planning
from ..jobs.pretraining_runs import PretrainingRun
from ..jobs.runs import Row, Run
from ..jobs.sweep import Sweep
from ..recipe import config
from ..studies import Study
from . import seeds as adding
from .seeds import Limits

_NEWS_S = 60.0  # for files of other nodes to be seen here


@dataclass(frozen=True)
class Request:
    """What was asked for, in the words of the command."""

    study: Study
    source: str  # what `studies.find` takes
    scale: str
    size: str
    seeds: int | Limits  # 0: the study's
    sweep: Sweep | None
    variants: str
    overrides: str
    dataset: str
    val: str
    images: str
    runs: Path
    command: str
    delta: float | None  # AP, of no interest; None: the scale's
    processes: int  # of one run
    here: bool  # whether it runs on this machine, not on a cluster's nodes
    yes: bool  # train for days on a CPU if need be


@dataclass(frozen=True)
class Round:
    """What is to run before anything is looked at."""

    needed: list[PretrainingRun]  # that are not done
    runs: list[Run]
    todo: list[Run]  # those that are not done


class Rounds:
    """Of one request, one after the other."""

    def __init__(self, request: Request, console: Console):
        self.request, self.console = request, console
        self._rounds = self._all()
        self._begun = False

    def next(self) -> Round | None:
        """What to run now, written down in the study's folder; None: nothing more.

        Raises:
            UserError: it cannot be run as it was asked for; nothing has begun then.
        """
        return next(self._rounds, None)

    def _all(self) -> Iterator[Round]:
        """Each is asked for when the one before has been run."""
        limits, rows, swept = self.request.seeds, self._rows, self._choosing
        choosing, chosen = [run for at in swept.values() for run in at.values()], {}
        before = adding.last_asked(self._folder)
        if not all(run.done for run in choosing):
            self._first(rows, before, choosing)  # what it raises should come before anything runs
            yield self._round(rows, [], choosing, chosen)
            _wait_for(choosing)
        if choosing:
            chosen = {name: sweep.best(at) for name, at in swept.items()}
            rows = [self._swept[name][factor] for name, factor in chosen.items()]
            words = ", ".join(f"{name} x{factor:g}" for name, factor in chosen.items())
            self.console.print(f"{self.request.sweep.key}: {words}", highlight=False)
        counts = self._first(rows, before, choosing)
        while counts:
            runs = self._runs(rows, counts)
            yield self._round(rows, runs, choosing, chosen)
            if not isinstance(limits, Limits):
                return
            _wait_for(runs)
            counts = self._following(rows, counts, [*choosing, *runs])

    @cached_property
    def _rows(self) -> list[Row]:
        asked = self.request
        words, _ = config.split_overrides(config.parse_overrides(asked.overrides))
        chosen = [name.strip() for name in asked.variants.split(",") if name.strip()]
        return planning.rows(asked.study, asked.scale, asked.size, words, chosen)

    @cached_property
    def _swept(self) -> dict[str, dict[float, Row]]:
        """Each row at each of the sweep's factors; empty without one."""
        asked = self.request
        if not asked.sweep:
            return {}
        words, _ = config.split_overrides(config.parse_overrides(asked.overrides))
        return sweep.rows_of(asked.sweep, asked.study, asked.scale, self._rows, words)

    @cached_property
    def _choosing(self) -> dict[str, dict[float, Run]]:
        asked, (data, _) = self.request, self._prepared
        return sweep.choosing(self._swept, asked.study, asked.source, asked.scale, data, asked.runs)

    @cached_property
    def _folder(self) -> Path:
        asked = self.request
        own = asked.dataset and asked.val
        own_set = annotations.set_name(asked.dataset, asked.val) if own else ""
        return asked.runs / asked.scale / annotations.study_folder(asked.study.name, own_set)

    @cached_property
    def _prepared(self) -> tuple[Data, list[PretrainingRun]]:
        """Data, and pre-trainings, which the rows then name."""
        asked, cfgs = self.request, [row.cfg for row in self._rows]
        swept = (at.items() for at in self._swept.values())
        cfgs += [row.cfg for at in swept for factor, row in at if factor != 1]
        _, words = config.split_overrides(config.parse_overrides(asked.overrides))
        config.check_writable(self._folder)
        config.check_pretraining_words(cfgs, words, asked.images)
        missing = planning.missing_weights(cfgs)
        try:
            data = catalog.prepare(
                asked.scale, asked.dataset or None, asked.val or None, asked.study.dataset
            )
        except UserError as error:
            raise UserError("; ".join([str(error), *missing])) from error
        # First what encoders start from: it is a part of their runs' identity.
        pretrainings = pretraining_runs.plan_for(
            cfgs,
            asked.scale,
            lambda: pretraining_images.prepare(asked.scale, asked.images or None),
            asked.runs,
            words,
        )
        return data, pretrainings

    def _runs(self, rows: list[Row], counts: int | Mapping[str, int]) -> list[Run]:
        asked, (data, _) = self.request, self._prepared
        return planning.plan(asked.study, asked.source, asked.scale, rows, counts, data, asked.runs)

    def _first(
        self, rows: list[Row], before: set[tuple[str, str]], choosing: list[Run]
    ) -> dict[str, int]:
        """How many seeds of each row there are to be before anything is looked at.

        Args:
            before: as of `adding.last_asked`.
            choosing: runs that take their part of a budget.
        """
        asked, limits = self.request, self.request.seeds
        if not isinstance(limits, Limits):
            number = limits or asked.study.seeds.get(asked.scale, 1)
            return {row.variant.name: number for row in rows}
        known = adding.asked_for(before, self._runs(rows, limits.most))
        counts = adding.first(rows, known, limits)
        if limits.budget and counts != known:
            runs = [*choosing, *self._runs(rows, counts)]
            spent, guessed = adding.spent(runs), {}
            if not spent:
                guessed = adding.forecast(asked.study, rows, asked.processes, asked.here)
            adding.check_fits(limits, runs, spent, guessed)
        return counts

    def _round(
        self, rows: list[Row], runs: list[Run], choosing: list[Run], chosen: Mapping[str, float]
    ) -> Round:
        """Of the runs that are compared, or, before there are any, of those that choose."""
        asked, (data, pretrainings) = self.request, self._prepared
        these = runs or choosing
        todo = [run for run in these if not run.done]
        needed = pretraining_runs.needed(pretrainings, [r.cfg.train.init_weights for r in todo])
        if missing := planning.missing_weights(r.cfg for r in todo):
            raise UserError(*missing)
        planning.check_weights(r.cfg for r in todo)
        for run in [*needed, *todo]:
            config.check_processes(run.cfg, asked.processes)
        first, self._begun = not self._begun, True
        if first:
            for line in planning.of_own_set(rows, data):
                self.console.print(line, highlight=False)
            self.console.print(asked.study.question)
        self.console.print(
            f"{len(these)} runs{'' if runs else f', which choose {asked.sweep.key}'}, "
            f"{len(these) - len(todo)} of them done, in {self._folder}"
            + (f"; before them {len(needed)} pre-trainings" if needed else "")
        )
        for line in [*planning.alike(rows), *planning.left_random(rows)] if first else ():
            self.console.print(line, highlight=False)
        if asked.scale == "coco" and todo and asked.here:  # it speaks of this machine
            from . import budget  # takes a second

            budget.announce(todo, asked.processes, asked.yes, self.console, needed)
        of_sweep = sweep.words(asked.sweep, self._choosing, chosen, self._folder)
        planning.write_manifest(
            asked.study, rows, these, self._folder, asked.command, of_sweep, bool(runs)
        )
        return Round(needed, planning.trainings_first(these), planning.trainings_first(todo))

    def _following(
        self, rows: list[Row], counts: dict[str, int], runs: list[Run]
    ) -> dict[str, int]:
        """How many seeds of each row there are to be after a look at the verdicts; empty: no more.

        Args:
            runs: all so far.
        """
        limits = self.request.seeds
        base, *others = counts
        words, still = adding.said(_verdicts(self._folder, self.request.delta), others)
        self.console.print(f"with {counts[base]} seeds: {words}", highlight=False)
        if not still:
            return {}
        steps, known = adding.more(counts, still, limits.most), adding.spent(runs)
        for step in steps:
            if adding.fits(limits, self._runs(rows, step), known, {}):
                return step
        limit = f"BUDGET={limits.budget}" if steps else f"MAX_SEEDS={limits.most}"
        self.console.print(f"{limit} is spent: not decided: {', '.join(still)}", highlight=False)
        return {}


def _wait_for(runs: Sequence[Run]) -> None:
    """Until all records are here: file systems of clusters show news late.

    Raises:
        UserError: they do not come.
    """
    end = time.monotonic() + _NEWS_S
    while lacking := [run for run in runs if not run.done]:
        if time.monotonic() > end:
            run = lacking[0]
            raise UserError(
                f"no record of {run.variant} seed {run.seed} in {run.folder}: the same command "
                "goes on"
            )
        time.sleep(1.0)


def _verdicts(study: Path, delta: float | None) -> dict[str, str]:
    """Of each row of a study, as its tables have it. Running knows nothing of statistics: analysis
    is asked by its own command.

    Raises:
        UserError: its own.
    """
    words = [sys.executable, "-W", "ignore", "-m", "analysis", "verdicts", str(study)]
    words += [] if delta is None else ["--delta", str(delta)]
    # It is none of the processes that torchrun started.
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    if done.returncode == 2:
        raise UserError(" ".join(done.stdout.split()).removeprefix("error: "))
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)
