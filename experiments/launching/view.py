"""One live view of all runs of a study: row, seed, state, iteration, loss, images/s, time left."""

import datetime
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table

from ..jobs.planned import Run
from ..records import METRICS

_LINE_EVERY = 30.0  # seconds between reports where there is no terminal


@dataclass
class Progress:
    """What the launcher knows of one run; how far it is stands in the run's own files."""

    run: Run
    state: str = "waiting"  # then "running", and "done", "failed" or "stopped"
    error: str = ""  # last line of what went wrong
    log: Path | None = None


class Launch(Protocol):
    """Runs under way: how far they are, whether all have ended, and what to do where the user stops
    following them, which says what becomes of them."""

    runs: list[Progress]
    finished: bool

    def stop(self) -> str: ...


def follow(launch: Launch, console: Console) -> None:
    """Show the runs until all have ended; without a terminal, print a line now and then."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=2, transient=False) as live:
            while not launch.finished:
                live.update(_table(launch))
                time.sleep(0.5)
            live.update(_table(launch))
        return
    states = ["waiting"] * len(launch.runs)
    last = time.monotonic()
    finished = False
    while not finished:
        time.sleep(0.2)
        finished = launch.finished  # asked first, so that the last states are printed
        due = time.monotonic() - last > _LINE_EVERY
        last = time.monotonic() if due else last
        for i, progress in enumerate(launch.runs):
            if progress.state != states[i] or (due and progress.state == "running"):
                states[i] = progress.state
                cells = _cells(progress)
                parts = [f"{k} {v}" if k in _NAMED else v for k, v in cells.items() if v]
                console.print("  ".join(parts), highlight=False, soft_wrap=True)


_SPEED = ("images/s", "MFU", "MiB", "time left")
_COLUMNS = ("variant", "seed", "state", "iteration", "loss", "lr", *_SPEED)
_NAMED = ("loss", "lr", *_SPEED)  # in a line, where no heading says what a number is


def _table(launch: Launch) -> Table:
    table = Table(*_COLUMNS, box=None)
    for progress in launch.runs:
        table.add_row(*(_cells(progress).get(column, "") for column in _COLUMNS))
    return table


def _cells(progress: Progress) -> dict[str, str]:
    """What is known, by column."""
    run = progress.run
    cells = dict(variant=run.variant, seed=f"seed {run.seed}", state=progress.state)
    if progress.state == "failed":
        cells["state"] = f"failed: {progress.error}"
    if progress.state != "running":
        return cells
    last = _last_line(Path(run.folder) / METRICS)
    if "evaluated" in last:
        cells["state"] = f"evaluating {last['evaluated']}/{last['images']}"
    elif "iteration" in last:
        cells["state"] = "training"
        cells["iteration"] = f"{last['iteration'] + 1}/{run.cfg.train.max_iter}"
        rates = [value for key, value in last.items() if key.startswith("lr/")]
        if rates:
            low, high = min(rates), max(rates)
            cells["lr"] = f"{high:.2g}" if low == high else f"{low:.2g}..{high:.2g}"
    for column, key, form in (
        ("loss", "total_loss", "{:.3f}"),
        ("images/s", "images_per_second", "{:.3g}"),
        ("MFU", "mfu", "{:.0%}"),
        ("MiB", "memory_mib", "{:.0f}"),
    ):
        if key in last:
            cells[column] = form.format(last[key])
    if "eta_seconds" in last:
        cells["time left"] = str(datetime.timedelta(seconds=int(last["eta_seconds"])))
    return cells


def _last_line(path: Path) -> dict:
    """The last whole JSON line of a file that another process appends to."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 8192))
            lines = file.read(8192).decode(errors="replace").splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            return json.loads(line)
        except ValueError:
            continue
    return {}
