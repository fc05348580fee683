"""What goes on beside the steps of training: averages, measuring, checkpoints."""

import contextlib
import copy
import logging
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)

from ..costs import environment
from ..records import LAST_WEIGHTS, checkpoints
from . import distributed

_LOGGER = logging.getLogger("detectron2")  # whose lines are kept in a run's log


class Average(HookBase):
    """Exponential moving average of the weights over steps.

    Args:
        model: as `parallel` gives it.
        decay: of a step.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.weights = [p.detach() for p in model.parameters()]
        self.means = [w.clone() for w in self.weights]
        self.decay = decay

    def after_step(self) -> None:
        torch._foreach_lerp_(self.means, self.weights, 1 - self.decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the means in the block, and its own weights after it; what the block
        changes in the model are the means."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for mean, weight in zip(self.means, self.weights, strict=True):
            kept = weight.clone()
            weight.copy_(mean)
            mean.copy_(kept)


class Meter(HookBase):
    """Seconds in the training loop and peak memory, over all resumes; speed as scalars.

    Args:
        images: of one step, of all processes together.
        macs: of one image's forward and backward pass; None: unknown.
        peak: MACs a second that the device can do, for the share that training reaches of it (MFU);
            None: unknown.
        precision: what products are computed in.
    """

    def __init__(
        self,
        images: int,
        macs: float | None,
        peak: float | None,
        precision: torch.dtype = torch.float32,
    ):
        self.images, self.macs, self.peak = images, macs, peak
        # Processes, device, threads of each; all that it went on on.
        self.machines = [
            [comm.get_world_size(), environment.device_name(), torch.get_num_threads()]
        ]
        self.processors = [environment.processor()]  # likewise
        name = str(precision).removeprefix("torch.")
        self.precisions = [name if precision is torch.float32 else f"{name} autocast"]  # likewise
        self.seconds = 0.0
        self.peak_mib = 0.0

    def before_train(self) -> None:
        self._since = time.perf_counter()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def after_step(self) -> None:
        now = time.perf_counter()
        step = now - self._since
        self.seconds += step
        self._since = now
        self.peak_mib = max(self.peak_mib, _peak_memory_mib())
        scalars = dict(images_per_second=self.images / step, memory_mib=self.peak_mib)
        if self.macs and self.peak:
            done = self.macs * self.images / comm.get_world_size()
            scalars["mfu"] = done / step / self.peak
        get_event_storage().put_scalars(**scalars)

    def state_dict(self) -> dict[str, Any]:
        return dict(
            seconds=self.seconds,
            peak_mib=self.peak_mib,
            machines=self.machines,
            processors=self.processors,
            precisions=self.precisions,
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seconds, self.peak_mib = state["seconds"], state["peak_mib"]
        self.machines = [m for m in state["machines"] if m not in self.machines] + self.machines
        before = state.get("processors", [])  # noted by runs of today only
        self.processors = [p for p in before if p not in self.processors] + self.processors
        before = state.get("precisions", [])
        self.precisions = [p for p in before if p not in self.precisions] + self.precisions


class LearningRates(HookBase):
    """The learning rate of every group, as scalars named by its factor of the base's."""

    def __init__(self, optimizer: torch.optim.Optimizer, base: float, period: int):
        self.period = period
        self.groups = {f"lr/x{g['initial_lr'] / base:.4g}": g for g in optimizer.param_groups}

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self.period == 0:
            for name, group in self.groups.items():
                get_event_storage().put_scalar(name, group["lr"], smoothing_hint=False)


_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class Checkpoints(HookBase):
    """Writes checkpoints, the last of what is evaluated only, and one more where the run is told to
    stop (SIGUSR2: submitit's signal of preemption and time limits); goes on from the last.

    The state is that of one process holding everything: any number of processes goes on from it.

    Args:
        folder: of the run.
        model, optimizer, schedule, meter, average: what has a state; `average` may be None.
        period, minutes: iterations, and time, after which one is written, whichever is over first.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: LRMultiplier,
        meter: Meter,
        average: Average | None,
        period: int,
        minutes: float,
    ):
        self.folder = folder
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.meter, self.average = meter, average
        self.period, self.minutes = period, minutes
        self._told_to_stop = False

    def load(self) -> int:
        """Returns the first iteration that is to do: 0 without a checkpoint."""
        path = distributed.of_main(lambda: checkpoints.last_whole(self.folder))
        if path is None:
            return 0
        state = checkpoints.read(path)
        if path.name == LAST_WEIGHTS:
            return state["iteration"] + 1
        with _without_gradients(self.model):
            set_state_dict(
                self.model,
                self.optimizer,
                model_state_dict=state["model"],
                optim_state_dict=state["optimizer"],
                options=_WHOLE,
            )
        self.schedule.load_state_dict(state["schedule"])
        self.trainer.load_state_dict(state["trainer"])
        self.meter.load_state_dict(state["meter"])
        if self.average:
            with self.average.in_place():
                set_model_state_dict(self.model, state["average"], options=_WHOLE)
        return state["iteration"] + 1

    def before_train(self) -> None:
        self._since = time.monotonic()
        self._before = signal.signal(signal.SIGUSR2, self._stop)

    def _stop(self, signum: int, frame: Any) -> None:
        self._told_to_stop = True

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        over = comm.is_main_process() and time.monotonic() - self._since > 60 * self.minutes
        stop, over = distributed.sums([float(self._told_to_stop), float(over)])
        if done == self.trainer.max_iter:
            with self.average.in_place() if self.average else contextlib.nullcontext():
                self._save(None, model=get_model_state_dict(self.model, options=_WHOLE))
        elif stop or over or done % self.period == 0:
            self._save(self.trainer.iter, **self._state())
        if stop:
            self._hand_over()

    def after_train(self) -> None:
        signal.signal(signal.SIGUSR2, self._before)

    def _hand_over(self) -> None:
        """To submitit, which queues the run again; process 0 does that for all. Without submitit,
        to whoever started this process: it has ended before its work was done."""
        _LOGGER.info("Told to stop: checkpoint written after iteration %d", self.trainer.iter)
        if not callable(self._before):
            sys.exit(128 + signal.SIGUSR2)
        if comm.is_main_process():
            self._before(signal.SIGUSR2, None)
        sys.exit(0)

    def _state(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer, options=_WHOLE)
        state = dict(
            model=model,
            optimizer=optimizer,
            schedule=self.schedule.state_dict(),
        )
        if self.average:
            with self.average.in_place():
                # On the CPU without a copy it would be the model's own memory.
                state["average"] = copy.deepcopy(get_model_state_dict(self.model, options=_WHOLE))
        return state

    def _save(self, iteration: int | None, **state: Any) -> None:
        state |= dict(
            iteration=self.trainer.iter,
            meter=self.meter.state_dict(),
            trainer=self.trainer.state_dict(),
        )
        if comm.is_main_process():
            path = checkpoints.save(self.folder, iteration, state)
            _LOGGER.info("Saved %s", path.name)
        distributed.wait()
        self._since = time.monotonic()


@contextlib.contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """Where there are some, torch takes the optimizer for one that has made its averages."""
    kept = [(weight, weight.grad) for weight in model.parameters()]
    for weight, _ in kept:
        weight.grad = None
    try:
        yield
    finally:
        for weight, gradient in kept:
            weight.grad = gradient


def _peak_memory_mib() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
