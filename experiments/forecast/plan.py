"""What a study will take before anything runs: hours, memory per GPU, disk, row by row.

docs/plan.md says what is counted, what is not, and how far off it is.
"""

import heapq
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from omegaconf import DictConfig

from ..costs import devices, environment
from ..costs.detector_cost import Cost, detector_cost
from ..costs.devices import GPUS, Gpu
from ..costs.training_cost import Step, training_step
from ..jobs.runs import Row
from ..launching import local
from ..recipe import config, identity
from ..studies import Study
from . import budget
from .budget import Memory

# GiB kept free: what detectron2's releases took beyond what is counted here, at most.
RESERVE = {"coco": 2, "lvis": 6}
_MEASURING = 60.0  # seconds per row, at most, on a CPU


@dataclass(frozen=True)
class Target:
    """What is planned for: `devices` GPUs of a name, or those of this machine, or its CPU."""

    gpu: Gpu | None  # None: this machine
    devices: int  # of one run, or of as many runs side by side
    memory_bytes: float

    @property
    def on_cpu(self) -> bool:
        return not self.gpu and not torch.cuda.is_available()

    @property
    def low_precision(self) -> bool:
        """Whether `train.amp` means something there: each of `devices.GPUS` has bfloat16."""
        return bool(self.gpu) or devices.precision(amp=True) is not torch.float32

    @property
    def title(self) -> str:
        return self.gpu.title if self.gpu else environment.device_name()


@dataclass(frozen=True)
class Estimate:
    """Of one run of a row."""

    variant: str
    params: int
    macs: int  # of one image's inference, as in the tables
    same_training: str  # the row before that trains the same weights, or ""
    hours: float  # of training on one device; 0 with `same_training`, NaN if it does not fit
    spread_hours: float  # of training on all devices; NaN too if a step has fewer passes
    measured: bool  # whether real iterations were timed
    memory: Memory
    batch: int  # the largest micro batch that fits, 0: none
    checkpointed: Memory | None  # with activation checkpointing; None: the encoder has none
    checkpointed_batch: int
    slowdown: float  # of hours by activation checkpointing
    disk_bytes: int


@dataclass(frozen=True)
class _Counted:
    """Of a detector."""

    cost: Cost
    memory: Memory
    checkpointed: Memory | None
    steps: tuple[Step, Step]  # of one image in the textbook form, without and with checkpointing


def target(rows: Sequence[Row], device: str, gpus: int) -> Target:
    """What --device and --gpus mean.

    Args:
        device: one of `devices.GPUS`; "": this machine, or an A100 if GPUs are asked for and it has
            none.
        gpus: how many; 0: one of a named kind, or what this machine has.

    Raises:
        UserError: an unknown device.
    """
    if device or (gpus and not torch.cuda.is_available()):
        gpu = devices.find_gpu(device or "a100-40gb")
        return Target(gpu, gpus or 1, gpu.memory_gb * 1e9)
    count = gpus or local.default_jobs(rows, len(os.sched_getaffinity(0)))
    return Target(None, count, devices.memory_here())


def estimate(study: Study, rows: Iterable[Row], where: Target, val_images: int) -> list[Estimate]:
    """The estimates of rows, in order. What trains alike is trained once, by the first."""
    reserve = RESERVE[study.dataset] * 2**30
    estimates, trained, counts = [], {}, {}
    for row in rows:
        mark = identity.training_fingerprint(row.cfg, "")
        same = trained.get(mark, "")
        trained.setdefault(mark, row.variant.name)
        amp = row.cfg.train.amp and where.low_precision
        trains = config.tuning(row.cfg), config.keeps_features(row.cfg)
        network = (str(row.cfg.model), amp, *trains)
        if network not in counts:
            counts[network] = _count(row.cfg.model, *network[1:])
        counted = counts[network]
        estimates.append(_estimate(row, counted, where, reserve, val_images, same))
    return estimates


def _estimate(
    row: Row,
    counted: _Counted,
    where: Target,
    reserve: float,
    val_images: int,
    same_training: str,
) -> Estimate:
    cfg, (total, micro) = row.cfg, config.batch(row.cfg)
    available = where.memory_bytes - reserve
    checkpointed = counted.checkpointed
    batch = counted.memory.largest_batch(available, total)
    gpu = where.gpu or GPUS["a100-40gb"]
    once, again = (budget.seconds_on(gpu, step) for step in counted.steps)
    recomputes = bool(checkpointed) and cfg.model.backbone.use_act_checkpoint
    seconds, measured = 0.0, False
    if where.gpu and not same_training:
        seconds = again if recomputes else once
    elif not same_training:
        needed = (checkpointed if recomputes else counted.memory).of(micro)
        seconds, measured = _seconds_here(cfg, where, fits=needed <= where.memory_bytes)
    hours = seconds * total * cfg.train.max_iter / 3600
    passes = total // micro
    return Estimate(
        variant=row.variant.name,
        params=counted.cost.params,
        macs=counted.cost.macs,
        same_training=same_training,
        hours=hours,
        spread_hours=hours_spread(hours, passes, where.devices),
        measured=measured,
        memory=counted.memory,
        batch=batch,
        checkpointed=checkpointed,
        checkpointed_batch=checkpointed.largest_batch(available, total) if checkpointed else 0,
        slowdown=again / once,
        disk_bytes=budget.disk_bytes(cfg, counted.cost.params, val_images, not same_training),
    )


def _count(cfg_model: DictConfig, amp: bool, tuning: str, kept: bool) -> _Counted:
    cost = detector_cost(cfg_model)
    modes = (False, True) if "use_act_checkpoint" in cfg_model.backbone else (None,)
    params, size = cost.detector.params, cost.size
    memory = [budget.memory(cfg_model, params, size, amp, m, tuning, kept) for m in modes]
    steps = [training_step(cfg_model, 1, size, amp, m, True, tuning, kept) for m in modes]
    checkpointed = memory[1] if len(modes) == 2 else None
    return _Counted(cost.detector, memory[0], checkpointed, (steps[0], steps[-1]))


def _seconds_here(cfg: DictConfig, where: Target, fits: bool) -> tuple[float, bool]:
    """Training seconds per image on this machine, and whether real iterations were timed."""
    if where.on_cpu:
        seconds = budget.cpu_seconds(cfg)
        if seconds * budget.measured_images(cfg) > _MEASURING:
            return seconds, False
    elif not fits:
        return math.nan, False
    return budget.measured_seconds(cfg), True


def hours_spread(hours: float, passes: int, devices: int) -> float:
    """Of one run whose steps' passes are dealt out to devices; NaN if there are not enough."""
    return hours * math.ceil(passes / devices) / passes if passes >= devices else math.nan


def hours_side_by_side(hours: Sequence[float], devices: int) -> float:
    """When the last of the runs ends if each takes the first device that is free, in order."""
    free = [0.0] * devices
    for run in hours:
        heapq.heapreplace(free, free[0] + run)
    return max(free)


def hours_choosing(
    rows: Sequence[Row],
    swept: Mapping[str, Mapping[float, Row]],
    estimates: Sequence[Estimate],
) -> list[float]:
    """Hours of each training of a sweep; what the network costs is the row's."""

    def images(cfg: DictConfig) -> int:
        return cfg.train.max_iter * config.batch(cfg)[0]

    hours = {e.variant: e.hours for e in estimates if not e.same_training}
    return [
        hours[row.variant.name] * images(tried.cfg) / images(row.cfg)
        for row in rows
        if row.variant.name in hours
        for tried in swept.get(row.variant.name, {}).values()
    ]
