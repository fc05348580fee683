"""What a command for a study comes to: what is to run now, and, once it has, what next.

A study with a number of seeds is one round. A sweep has one before it, whose runs choose each row's
value. With `SEEDS=auto` each round is followed by a look at the verdicts: rows that are not decided
get more seeds in the next one. Called again, the same command goes on with the round that was last
asked for: the manifest has it.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from ..data import pretraining_images
from ..errors import UserError
from ..jobs import pretraining_runs, sweep
from ..jobs import runs as planning
from ..jobs.planned import Stages
from ..jobs.runs import DetectionRun, Row
from ..launching import Launcher
from ..recipe import checks, config
from ..recipe.words import parse_overrides
from ..records import PRETRAINED
from ..scales import SCALES
from . import seeds as adding
from .request import Request
from .seeds import Limits

_NEWS_S = 60.0  # for files of other nodes to be seen here


class Rounds:
    """Of one request, one after the other: what is to run now, written down in the study's folder,
    and, once it has, what next."""

    def __init__(self, request: Request, launcher: Launcher, console: Console):
        self.request, self.launcher, self.console = request, launcher, console
        self._begun = False

    def __iter__(self) -> Iterator[Stages]:
        """Each is asked for when the one before has been run.

        Raises:
            UserError: it cannot be run as it was asked for; nothing has begun then.
        """
        asked, limits = self.request, self.request.seeds
        rows, swept = asked.rows, asked.choosing
        choosing, chosen = [run for at in swept.values() for run in at.values()], {}
        before = adding.last_asked(asked.folder)
        if not all(run.done for run in choosing):
            self._first(rows, before, choosing)  # what it raises should come before anything runs
            yield self._round(rows, [], choosing, chosen)
            _wait_for(choosing)
        if choosing:
            chosen = {name: sweep.best(at) for name, at in swept.items()}
            rows = [asked.swept[name][factor] for name, factor in chosen.items()]
            words = ", ".join(f"{name} x{factor:g}" for name, factor in chosen.items())
            self.console.print(f"{asked.sweep.key}: {words}", highlight=False)
        counts = self._first(rows, before, choosing)
        while counts:
            runs = asked.runs_of(rows, counts)
            yield self._round(rows, runs, choosing, chosen)
            if not isinstance(limits, Limits):
                return
            _wait_for(runs)
            counts = self._following(rows, counts, [*choosing, *runs])

    def _first(
        self, rows: list[Row], before: set[tuple[str, str]], choosing: list[DetectionRun]
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
        known = adding.asked_for(before, asked.runs_of(rows, limits.most))
        counts = adding.first(rows, known, limits)
        if limits.budget and counts != known:
            runs = [*choosing, *asked.runs_of(rows, counts)]
            spent, guessed = adding.spent(runs), {}
            if not spent:
                guessed = adding.forecast(asked.study, rows, self.launcher)
            adding.check_fits(limits, runs, spent, guessed)
        return counts

    def _round(
        self,
        rows: list[Row],
        runs: list[DetectionRun],
        choosing: list[DetectionRun],
        chosen: Mapping[str, float],
    ) -> Stages:
        """Of the runs that are compared, or, before there are any, of those that choose."""
        asked, (data, pretrainings) = self.request, self.request.prepared
        these = runs or choosing
        todo = [run for run in these if not run.done]
        needed = pretraining_runs.needed(pretrainings, [r.cfg.train.init_weights for r in todo])
        if missing := planning.missing_weights(r.cfg for r in todo):
            raise UserError(*missing)
        planning.check_weights(r.cfg for r in todo)
        for run in [*needed, *todo]:
            checks.check_processes(run.cfg, self.launcher.processes)
        first, self._begun = not self._begun, True
        if first:
            for line in planning.of_own_set(rows, data):
                self.console.print(line, highlight=False)
            self.console.print(asked.study.question)
        self.console.print(
            f"{len(these)} runs{'' if runs else f', which choose {asked.sweep.key}'}, "
            f"{len(these) - len(todo)} of them done, in {asked.folder}"
            + (f"; before them {len(needed)} pre-trainings" if needed else "")
        )
        for line in [*planning.alike(rows), *planning.left_random(rows)] if first else ():
            self.console.print(line, highlight=False)
        if todo:
            _announce(asked.scale, self.launcher, asked.yes, self.console, todo, needed)
        of_sweep = sweep.words(asked.sweep, asked.choosing, chosen, asked.folder)
        planning.write_manifest(
            asked.study, rows, these, asked.folder, asked.command, of_sweep, bool(runs)
        )
        return [*pretraining_runs.by_depth(needed), planning.trainings_first(todo)] if todo else []

    def _following(
        self, rows: list[Row], counts: dict[str, int], runs: list[DetectionRun]
    ) -> dict[str, int]:
        """How many seeds of each row there are to be after a look at the verdicts; empty: no more.

        Args:
            runs: all so far.
        """
        asked, limits = self.request, self.request.seeds
        base, *others = counts
        words, still = adding.said(_verdicts(asked.folder, asked.delta), others)
        self.console.print(f"with {counts[base]} seeds: {words}", highlight=False)
        if not still:
            return {}
        steps, known = adding.more(counts, still, limits.most), adding.spent(runs)
        for step in steps:
            if adding.fits(limits, asked.runs_of(rows, step), known, {}):
                return step
        limit = f"BUDGET={limits.budget}" if steps else f"MAX_SEEDS={limits.most}"
        self.console.print(f"{limit} is spent: not decided: {', '.join(still)}", highlight=False)
        return {}


def of_recipe(
    recipe: str, scale: str, size: str, seeds: int, overrides: str, images: str, root: Path,
    yes: bool, launcher: Launcher, console: Console,
) -> Iterator[Stages]:  # fmt: skip
    """Of pre-trainings alone: one round; in the end the encoders are named."""
    words = parse_overrides(overrides)
    pretraining_runs.resolve(recipe, size, words)  # before images are looked for
    checks.check_writable(root / scale / PRETRAINED)
    data = pretraining_images.prepare(scale, images or None)
    word = config.RECIPE + recipe
    chains = [
        pretraining_runs.plan(word, scale, size, data, root, words, seed=seed)
        for seed in range(seeds or 1)
    ]
    names = [pretraining_runs.word_of(chain[-1]) for chain in chains]
    needed = pretraining_runs.needed([run for chain in chains for run in chain], names)
    for run in needed:
        checks.check_processes(run.cfg, launcher.processes)
    if needed:
        _announce(scale, launcher, yes, console, [], needed)
    yield pretraining_runs.by_depth(needed)
    for chain in chains:
        console.print(Path(chain[-1].folder) / pretraining_runs.ENCODER, highlight=False)


def _announce(scale: str, launcher: Launcher, yes: bool, console: Console, *runs: list) -> None:
    if not SCALES[scale].embedded and launcher.here:  # it speaks of this machine
        from . import budget  # takes a second

        budget.announce(launcher.processes, yes, console, *runs)


def _wait_for(runs: Sequence[DetectionRun]) -> None:
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
