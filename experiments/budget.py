"""What a study at coco scale will take, said before it starts."""

import functools
import time
from collections.abc import Sequence

import torch
from rich.console import Console

from . import config
from .cost import detector_cost
from .errors import UserError
from .runs import Run

_PASSES = 3  # a backward pass multiplies twice what the forward pass does
_FREE_HOURS = 3.0  # on a CPU; what takes longer must be wanted


def announce(runs: Sequence[Run], yes: bool, console: Console) -> None:
    """Say how batches are made on one device and, on a CPU, how long training will take.

    Args:
        runs: not done yet.
        yes: whether the user wants it however long it takes.

    Raises:
        UserError: without a GPU it takes more than three hours, and `yes` is not said.
    """
    gpu = torch.cuda.is_available()
    for total, micro in sorted({_batch(run) for run in runs}):
        console.print(
            f"batches of {total} images: {total // micro} passes of {micro} on one "
            f"{'GPU' if gpu else 'CPU'}, their gradients added up"
        )
    if gpu:
        return
    hours = cpu_hours(runs)
    text = f"training will take about {_duration(hours)} on this CPU, there is no GPU"
    if hours > _FREE_HOURS and not yes:
        raise UserError(f"{text}: say YES=1 (--yes) to start all the same, or use SCALE=mini")
    console.print(text)


def cpu_hours(runs: Sequence[Run]) -> float:
    """Hours of training's products at this CPU's rate of large ones; shared trainings once."""
    trainings = {config.training_fingerprint(run.cfg, run.data.digest): run for run in runs}
    seconds = 0.0
    for run in trainings.values():
        macs = detector_cost(run.cfg.model).detector.macs
        images = _batch(run)[0] * run.cfg.train.max_iter
        dtype = torch.bfloat16 if run.cfg.train.amp else torch.float32
        seconds += _PASSES * macs * images / _macs_per_second(dtype)
    return seconds / 3600


def _batch(run: Run) -> tuple[int, int]:
    """Images of one optimizer step, and of one pass."""
    train = run.cfg.dataloader.train
    return train.total_batch_size, min(train.micro_batch_size, train.total_batch_size)


@functools.cache
def _macs_per_second(dtype: torch.dtype, side: int = 1024, seconds: float = 0.5) -> float:
    a = torch.rand(side, side).to(dtype)
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
