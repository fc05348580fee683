"""From a config, a model and its images to trained weights: optimizer, schedule, loop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.engine import hooks
from detectron2.solver import LRMultiplier
from detectron2.solver.lr_scheduler import WarmupParamScheduler
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, JSONWriter, TensorboardXWriter
from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ..costs.devices import peak_macs_per_second, precision
from ..data.stream import Stream, training_loader
from ..recipe import config
from ..recipe.optim import param_groups
from ..records import METRICS, checkpoints
from . import distributed, passes
from .hooks import Average, Checkpoints, LearningRates, Meter
from .training_loop import Trainer, compile_blocks, parallel


def fit(
    cfg: DictConfig,
    folder: Path,
    model: nn.Module,
    encoder: nn.Module,
    stream: Callable[[], Stream],
    macs: float | None,
) -> None:
    """Train, from the last checkpoint in the folder if there is one, to `records.LAST_WEIGHTS`.

    Args:
        cfg: with dataloader.train, optimizer, param_groups, schedule and train, see configs/.
        folder: of the run.
        model: on the CPU; called with a list of what the stream gives, it returns losses.
        encoder: the part of it whose blocks `train.compile` compiles.
        stream: makes the training images; called only if there is something to train.
        macs: of one image's forward and backward pass, or None, see `hooks.Meter`.

    Raises:
        FloatingPointError: losses or gradients are not finite, more often than `train.may_skip`.
    """
    device = distributed.device()
    config.tune(model, cfg)
    batch, micro_batch = config.batch(cfg)
    group = config.group(cfg)
    groups = passes.groups(model, micro_batch, group)
    micro_batch = groups * group
    if cfg.train.compile:
        compile_blocks(encoder)
    model = parallel(model.to(device), cfg.train.parallel)
    optimizer = _optimizer(cfg, model)
    schedule = _schedule(cfg, optimizer)
    average = Average(model, cfg.train.ema) if cfg.train.ema else None
    dtype = _of_all(precision(cfg.train.amp))
    meter = Meter(batch, macs, peak_macs_per_second(dtype), dtype)
    saved = Checkpoints(
        folder,
        model,
        optimizer,
        schedule,
        meter,
        average,
        cfg.train.checkpoint_period,
        cfg.train.checkpoint_minutes,
    )
    trainer = Trainer(
        model,
        None,
        optimizer,
        micro_batches=batch // micro_batch,
        groups=groups,
        seed=cfg.train.seed,
        precision=dtype,
        clip_grad_norm=cfg.train.clip_grad_norm,
        may_skip=cfg.train.may_skip,
        last_checkpoint=lambda: checkpoints.last(folder),
    )
    # A short run is heard of too: ten lines at least.
    log_period = max(1, min(cfg.train.log_period, cfg.train.max_iter // 10))
    writers = [
        CommonMetricPrinter(cfg.train.max_iter),
        JSONWriter(str(folder / METRICS)),
        TensorboardXWriter(str(folder / "tensorboard")),
    ]
    trainer.register_hooks(
        [
            hooks.IterationTimer(warmup_iter=1),
            # Before the next hook makes them the next step's.
            LearningRates(optimizer, cfg.optimizer.lr, log_period),
            hooks.LRScheduler(scheduler=schedule),
            meter,
            *([average] if average else []),
            *([hooks.PeriodicWriter(writers, log_period)] if comm.is_main_process() else []),
            saved,
        ]
    )
    start = saved.load()
    if start >= cfg.train.max_iter:
        return
    trainer.data_loader = training_loader(
        stream(),
        start=start * batch,
        batch_size=micro_batch,
        num_workers=min(cfg.dataloader.train.num_workers, distributed.cores()),
        per_step=batch // micro_batch,
        rank=comm.get_rank(),
        world=comm.get_world_size(),
    )
    trainer.train(start, cfg.train.max_iter)


def _of_all(dtype: torch.dtype) -> torch.dtype:
    """What every process of the run computes in, on whatever devices."""
    found = set(comm.all_gather(dtype))
    return dtype if len(found) == 1 else torch.float32


def training_figures(cfg: DictConfig, state: dict[str, Any]) -> dict[str, Any]:
    """What records say of a training, from its last checkpoint: speed, memory, machine."""
    meter = state["meter"]
    processes, device, threads = meter["machines"][-1]
    if len(meter["machines"]) > 1:
        device = ", then ".join(f"{p} x {d} ({t} threads)" for p, d, t in meter["machines"])
    # A checkpoint of before they were noted has none.
    processors = meter.get("processors", [])
    precisions = meter.get("precisions", ["bfloat16 autocast" if cfg.train.amp else "float32"])
    names = dict.fromkeys(name for processor in processors for name in processor)
    machine = {
        name: ", then ".join(dict.fromkeys(p.get(name, "?") for p in processors)) for name in names
    }
    return dict(
        train_seconds=meter["seconds"],
        images_per_second=cfg.train.max_iter * config.batch(cfg)[0] / max(meter["seconds"], 1e-9),
        peak_memory_mib=meter["peak_mib"],
        memory_kind="allocated on device" if torch.cuda.is_available() else "process resident",
        precision=", then ".join(precisions),
        device=device,
        machine=machine,
        threads=threads,
        processes=processes,
        skipped=state["trainer"]["skipped"],
    )


def _optimizer(cfg: DictConfig, model: nn.Module) -> torch.optim.Optimizer:
    words = OmegaConf.to_container(cfg.optimizer, resolve=True)
    build = words.pop("_target_")
    build = locate(build) if isinstance(build, str) else build
    groups = param_groups(model, words["lr"], words["weight_decay"], **cfg.param_groups)
    return build(groups, **words)


def _schedule(cfg: DictConfig, optimizer: torch.optim.Optimizer) -> LRMultiplier:
    warmup = min(cfg.schedule.warmup_iters / cfg.train.max_iter, 1.0)
    multiplier = WarmupParamScheduler(
        instantiate(cfg.schedule.decay), cfg.schedule.warmup_factor, warmup
    )
    return LRMultiplier(optimizer, multiplier, cfg.train.max_iter)
