"""One live view of all runs of a study: row, seed, state, iteration, loss, images/s, time left."""

import datetime
import json
import os
import time
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from .launch import Launch, Progress
from .train import METRICS

_LINE_EVERY = 30.0  # seconds between reports where there is no terminal


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
                variant, seed, state, iteration, loss, speed, left = _cells(progress)
                parts = [variant, seed, state, iteration]
                parts += [loss and f"loss {loss}", speed and f"{speed} images/s"]
                parts += [left and f"{left} left"]
                console.print("  ".join(filter(None, parts)), highlight=False, soft_wrap=True)


def _table(launch: Launch) -> Table:
    table = Table(
        "variant", "seed", "state", "iteration", "loss", "images/s", "time left", box=None
    )
    for progress in launch.runs:
        table.add_row(*_cells(progress))
    return table


def _cells(progress: Progress) -> tuple[str, ...]:
    run = progress.run
    last = _last_line(Path(run.folder) / METRICS) if progress.state == "running" else {}
    state, iteration, loss, speed, left = progress.state, "", "", "", ""
    if "evaluated" in last:
        state = f"evaluating {last['evaluated']}/{last['batches']}"
    elif "iteration" in last:
        state = "training"
        iteration = f"{last['iteration'] + 1}/{run.cfg.train.max_iter}"
        loss = f"{last['total_loss']:.3f}" if "total_loss" in last else ""
        speed = f"{last['images_per_second']:.1f}" if "images_per_second" in last else ""
        if "eta_seconds" in last:
            left = str(datetime.timedelta(seconds=int(last["eta_seconds"])))
    elif progress.state == "failed":
        state = f"failed: {progress.error}"
    return run.variant, f"seed {run.seed}", state, iteration, loss, speed, left


def _last_line(path: Path) -> dict:
    """The last whole JSON line of a file that another process appends to."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 8192))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            return json.loads(line)
        except ValueError:
            continue
    return {}
