"""What a study at coco scale will take, said before it starts."""

import time
from collections.abc import Sequence

import torch
from rich.console import Console

from .cost import detector_cost
from .errors import UserError
from .runs import Run

_PASSES = 3  # a backward pass multiplies twice what the forward pass does
_FREE_HOURS = 3.0  # on a CPU; what takes longer must be wanted


def announce(runs: Sequence[Run], yes: bool, console: Console) -> None:
    """Say how the recipe's batch is kept on one device and, on a CPU, how long training will take.

    Args:
        runs: not done yet.
        yes: whether the user wants it however long it takes.

    Raises:
        UserError: without a GPU it takes more than three hours, and `yes` is not said.
    """
    gpu = torch.cuda.is_available()
    for total, micro in sorted({_batch(run) for run in runs}):
        console.print(
            f"batches of {total} images, as in the recipe: {total // micro} passes of {micro} on "
            f"one {'GPU' if gpu else 'CPU'}, their gradients added up"
        )
    if gpu:
        return
    hours = cpu_hours(runs)
    text = f"training will take at least {_duration(hours)} on this CPU, there is no GPU"
    if hours > _FREE_HOURS and not yes:
        raise UserError(f"{text}: say YES=1 (--yes) to start all the same, or use SCALE=mini")
    console.print(text)


def cpu_hours(runs: Sequence[Run]) -> float:
    """At least so many hours: of training's products at this CPU's rate of large ones."""
    macs = sum(
        detector_cost(run.cfg.model).detector.macs * _batch(run)[0] * run.cfg.train.max_iter
        for run in runs
    )
    return _PASSES * macs / _macs_per_second() / 3600


def _batch(run: Run) -> tuple[int, int]:
    """Images of one optimizer step, and of one pass."""
    train = run.cfg.dataloader.train
    return train.total_batch_size, min(train.micro_batch_size, train.total_batch_size)


def _macs_per_second(side: int = 1024, seconds: float = 0.5) -> float:
    a = torch.rand(side, side)
    a @ a  # threads start
    start, products = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        a @ a
        products += 1
    return products * side**3 / (time.perf_counter() - start)


def _duration(hours: float) -> str:
    if hours < 1:
        return f"{hours * 60:.0f} minutes"
    return f"{hours:.0f} hours" if hours < 48 else f"{hours / 24:,.0f} days"
