"""What a command for a study comes to: what is to run now, and, once it has, what next.

A study with a number of seeds is one round. With `SEEDS=auto` each round is followed by a look at
the verdicts: rows that are not decided get more seeds in the next one. Called again, the same
command goes on with the round that was last asked for: the manifest has it.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rich.console import Console

from ..data import annotations, catalog, pretraining_images
from ..data.catalog import Data
from ..errors import UserError
from ..jobs import pretraining_runs
from ..jobs import runs as planning
from ..jobs.pretraining_runs import PretrainingRun
from ..jobs.runs import Row, Run
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
        self._counts: int | dict[str, int] | None = None  # of the last round: seeds, of each row

    def next(self) -> Round | None:
        """What to run now, written down in the study's folder; None: nothing more.

        Raises:
            UserError: it cannot be run as it was asked for; nothing has begun then.
        """
        if self._counts is None:
            self._counts = self._first()
            round_ = self._round(first=True)
        elif isinstance(self._counts, int):
            return None
        else:
            self._counts = self._following(self._counts)
            round_ = self._round(first=False) if self._counts else None
        return round_

    @cached_property
    def _rows(self) -> list[Row]:
        asked = self.request
        words, _ = config.split_overrides(config.parse_overrides(asked.overrides))
        chosen = [name.strip() for name in asked.variants.split(",") if name.strip()]
        return planning.rows(asked.study, asked.scale, asked.size, words, chosen)

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

    def _runs(self, counts: int | Mapping[str, int]) -> list[Run]:
        asked, (data, _) = self.request, self._prepared
        return planning.plan(
            asked.study, asked.source, asked.scale, self._rows, counts, data, asked.runs
        )

    def _first(self) -> int | dict[str, int]:
        asked = self.request
        if isinstance(asked.seeds, int):
            return asked.seeds or asked.study.seeds.get(asked.scale, 1)
        before = adding.asked_for(adding.last_asked(self._folder), self._runs(asked.seeds.most))
        counts = adding.first(self._rows, before, asked.seeds)
        if asked.seeds.budget and counts != before:
            runs = self._runs(counts)
            known, guessed = adding.spent(runs), {}
            if not known:
                guessed = adding.forecast(asked.study, self._rows, asked.processes, asked.here)
            adding.check_fits(asked.seeds, runs, known, guessed)
        return counts

    def _round(self, first: bool) -> Round:
        asked, (data, pretrainings) = self.request, self._prepared
        runs = self._runs(self._counts)
        todo = [run for run in runs if not run.done]
        needed = pretraining_runs.needed(pretrainings, [r.cfg.train.init_weights for r in todo])
        if missing := planning.missing_weights(r.cfg for r in todo):
            raise UserError(*missing)
        planning.check_weights(r.cfg for r in todo)
        for run in [*needed, *todo]:
            config.check_processes(run.cfg, asked.processes)
        if first:
            for line in planning.of_own_set(self._rows, data):
                self.console.print(line, highlight=False)
            self.console.print(asked.study.question)
        self.console.print(
            f"{len(runs)} runs, {len(runs) - len(todo)} of them done, in {self._folder}"
            + (f"; before them {len(needed)} pre-trainings" if needed else "")
        )
        for line in planning.alike(self._rows) if first else ():
            self.console.print(line, highlight=False)
        if asked.scale == "coco" and todo and asked.here:  # it speaks of this machine
            from . import budget  # takes a second

            budget.announce(todo, asked.processes, asked.yes, self.console, needed)
        planning.write_manifest(asked.study, self._rows, runs, self._folder, asked.command)
        return Round(needed, planning.trainings_first(runs), planning.trainings_first(todo))

    def _following(self, counts: dict[str, int]) -> dict[str, int]:
        """How many seeds there are to be after a look at the verdicts; empty: no more."""
        limits, runs = self.request.seeds, self._runs(counts)
        _wait_for(runs)
        base, *others = counts
        words, still = adding.said(_verdicts(self._folder, self.request.delta), others)
        self.console.print(f"with {counts[base]} seeds: {words}", highlight=False)
        if not still:
            return {}
        steps, known = adding.more(counts, still, limits.most), adding.spent(runs)
        for step in steps:
            if adding.fits(limits, self._runs(step), known, {}):
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
