"""One run: train, evaluate, record. Called in a process of its own (see launch.py)."""

import contextlib
import copy
import datetime
import fcntl
import json
import logging
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.data import get_detection_dataset_dicts
from detectron2.engine import HookBase, SimpleTrainer, hooks
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.solver import LRMultiplier
from detectron2.solver.lr_scheduler import WarmupParamScheduler
from detectron2.utils.events import CommonMetricPrinter, JSONWriter, get_event_storage
from detectron2.utils.logger import setup_logger
from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from backbones.weights import encoder_of, load_encoder

from . import config, environment, records, studies
from .config import plain_config
from .cost import detector_cost
from .data.stream import training_loader
from .errors import UserError
from .evaluate import PREDICTIONS, evaluate, set_num_classes
from .optim import param_groups
from .records import LAST_WEIGHTS
from .runs import Run

METRICS = "metrics.json"  # one JSON line per log period, read by the progress view


class Trainer(SimpleTrainer):
    """detectron2's loop with gradient accumulation, autocast on any device, and clipping.

    Args:
        model, data_loader, optimizer: as of `SimpleTrainer`.
        accumulate: batches of the loader per iteration; losses are averaged over them.
        amp: whether to autocast to bfloat16.
        clip_grad_norm: largest norm of all gradients together, or None.
        log_period: iterations between reads of the losses.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader,
        optimizer: torch.optim.Optimizer,
        accumulate: int,
        amp: bool,
        clip_grad_norm: float | None,
        log_period: int,
    ):
        super().__init__(model, data_loader, optimizer, gather_metric_period=log_period)
        self.accumulate = accumulate
        self.amp = amp
        self.clip_grad_norm = clip_grad_norm
        self.device = next(model.parameters()).device.type

    def run_step(self) -> None:
        self.optimizer.zero_grad()
        data_time = 0.0
        sums: dict[str, torch.Tensor] = {}
        for _ in range(self.accumulate):
            start = time.perf_counter()
            data = next(self._data_loader_iter)
            data_time += time.perf_counter() - start
            with torch.autocast(self.device, torch.bfloat16, enabled=self.amp):
                losses = self.model(data)
            (sum(losses.values()) / self.accumulate).backward()
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0.0) + loss.detach() / self.accumulate
        self.after_backward()
        if self.clip_grad_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad_norm)
        self._write_metrics(sums, data_time)
        self.optimizer.step()


class _Checkpointer(DetectionCheckpointer):
    """detectron2's, which executes nothing in a checkpoint, and whose note of the last one is there
    whole or not at all."""

    def _torch_load(self, path: str) -> dict[str, Any]:
        return torch.load(path, map_location="cpu", weights_only=True)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        note = Path(self.save_dir) / "last_checkpoint"
        scratch = note.with_name(".last_checkpoint")
        scratch.write_text(last_filename_basename)
        os.replace(scratch, note)


class _RandomState(HookBase):
    """Keeps torch's random state in checkpoints, so that a resumed run goes on as it would have."""

    def state_dict(self) -> dict[str, Any]:
        state = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        torch.set_rng_state(state["cpu"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])


class _Meter(HookBase):
    """Seconds in the training loop, and peak memory, over all resumes."""

    def __init__(self, images_per_iter: int):
        self.images_per_iter = images_per_iter
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
        get_event_storage().put_scalar("images_per_second", self.images_per_iter / step)
        self.peak_mib = max(self.peak_mib, _peak_memory_mib())

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds, "peak_mib": self.peak_mib}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.seconds, self.peak_mib = state["seconds"], state["peak_mib"]


def execute(run: Run) -> str:
    """Train (or go on), evaluate, and write the record; returns the record's path.

    Everything lies in `run.folder`: log.txt, metrics.json, checkpoints, config.yaml, predictions.
    """
    folder = Path(run.folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / ".lock"):
        if not run.done:
            _execute(run)
    return str(folder / records.RECORD)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time; others wait."""
    with open(path, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _execute(run: Run) -> None:
    started = _now()
    folder = Path(run.folder)
    studies.find(run.source)  # registers what the study's file defines
    if config.fingerprint(run.cfg, run.data.digest) != run.fingerprint:
        raise UserError(f"{run.source} changed since this run was planned: run the study again")
    setup_logger(str(folder / "log.txt"), name="detectron2")
    setup_logger(str(folder / "log.txt"), name="fvcore")
    cfg = copy.deepcopy(run.cfg)
    set_num_classes(cfg, len(run.data.categories))
    cfg.dataloader.test.dataset = str(run.data.val)
    LazyConfig.save(cfg, str(folder / "config.yaml"))
    if cfg.train.threads:
        torch.set_num_threads(cfg.train.threads)

    # What could fail is done before training: costs, versions.
    cost = detector_cost(cfg.model)
    versions, git_commit = environment.versions(), environment.git_commit()

    with _alone(_training_note(run)):
        model, meter = train(cfg, run)
    result = evaluate(model, cfg, run.data.val, folder, _report_evaluation(folder))

    record = records.Record(
        study=run.study,
        variant=run.variant,
        scale=run.scale,
        size=run.size,
        seed=cfg.train.seed,
        fingerprint=run.fingerprint,
        box=result.box,
        mask=result.mask,
        predictions=PREDICTIONS,
        params=cost.detector.params,
        macs=cost.detector.macs,
        activations=cost.detector.activations,
        encoder_params=cost.encoder.params,
        encoder_macs=cost.encoder.macs,
        input_size=cost.size,
        train_seconds=meter.seconds,
        images_per_second=cfg.train.max_iter * meter.images_per_iter / max(meter.seconds, 1e-9),
        evaluate_seconds=result.seconds,
        peak_memory_mib=meter.peak_mib,
        memory_kind="allocated on device" if torch.cuda.is_available() else "process resident",
        precision="bfloat16 autocast" if cfg.train.amp else "float32",
        device=environment.device_name(),
        threads=torch.get_num_threads(),
        versions=versions,
        git_commit=git_commit,
        started=started,
        finished=_now(),
        data=dict(
            kind=run.data.val.kind,
            images=run.data.images,
            train=run.data.train.json_file,
            val=run.data.val.json_file,
            digest=run.data.digest,
        ),
        config=plain_config(cfg),
    )
    records.write(folder, record)


def _training_note(run: Run) -> Path:
    """Names the run that was trained, for runs that differ from it at test time only; and the lock
    of that training."""
    mark = config.training_fingerprint(run.cfg, run.data.digest)
    folder = Path(run.folder).parent.parent / ".trained"
    folder.mkdir(exist_ok=True)
    return folder / mark


def _trained_by_another(run: Run) -> Path | None:
    """The weights of a run at this scale that was trained as this one would be."""
    note = _training_note(run)
    name = note.read_text() if note.is_file() else ""
    weights = note.parent.parent / name / LAST_WEIGHTS
    if not name or not weights.is_file() or weights.parent.samefile(run.folder):
        return None
    return weights


def train(cfg: DictConfig, run: Run) -> tuple[nn.Module, _Meter]:
    """The trained detector: from the last checkpoint in the run's folder if there is one, or of a
    run that was trained in the same way."""
    folder = Path(run.folder)
    torch.manual_seed(cfg.train.seed)
    model = instantiate(cfg.model).to("cuda" if torch.cuda.is_available() else "cpu")
    set_federated_loss(model, run.data.image_counts)
    optimizer = _optimizer(cfg, model)
    batch = cfg.dataloader.train.total_batch_size
    micro_batch = min(cfg.dataloader.train.micro_batch_size, batch)

    # A short run is heard of too: ten lines at least.
    log_period = max(1, min(cfg.train.log_period, cfg.train.max_iter // 10))
    trainer = Trainer(
        model,
        None,
        optimizer,
        accumulate=batch // micro_batch,
        amp=cfg.train.amp,
        clip_grad_norm=cfg.train.clip_grad_norm,
        log_period=log_period,
    )
    meter = _Meter(batch)
    checkpointer = _Checkpointer(model, str(folder), trainer=trainer)
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=_schedule(cfg, optimizer)),
            meter,
            hooks.PeriodicWriter(
                [CommonMetricPrinter(cfg.train.max_iter), JSONWriter(str(folder / METRICS))],
                period=log_period,
            ),
            _RandomState(),
            hooks.PeriodicCheckpointer(
                checkpointer,
                cfg.train.checkpoint_period,
                max_iter=cfg.train.max_iter,
                max_to_keep=2,
            ),
        ]
    )
    start_iter = 0
    if twin := _trained_by_another(run):
        checkpointer.load(str(twin))
        start_iter = trainer.iter + 1
        (folder / LAST_WEIGHTS).unlink(missing_ok=True)
        (folder / LAST_WEIGHTS).symlink_to(os.path.relpath(twin, folder))
    elif checkpointer.has_checkpoint():
        checkpointer.resume_or_load("", resume=True)
        start_iter = trainer.iter + 1
    elif weights := config.init_weights(cfg):
        _, encoder = encoder_of(model)
        load_encoder(encoder, weights, show=logging.getLogger("detectron2").info)
    name = run.data.train.register()
    if run.data.has_rle:
        cfg.dataloader.train.mapper.instance_mask_format = "bitmask"
    trainer.data_loader = training_loader(
        get_detection_dataset_dicts(name),
        instantiate(cfg.dataloader.train.mapper),
        cfg.train.seed,
        start=start_iter * batch,
        batch_size=micro_batch,
        num_workers=cfg.dataloader.train.num_workers,
        repeat_threshold=cfg.dataloader.train.repeat_threshold,
    )
    if start_iter < cfg.train.max_iter:
        trainer.train(start_iter, cfg.train.max_iter)
    if not twin:
        note = _training_note(run)
        note.write_text(os.path.relpath(folder, note.parent.parent))
    return model, meter


def set_federated_loss(model: nn.Module, image_counts: Sequence[int]) -> None:
    """Give box predictors with a federated loss (arXiv:2103.07461) the data's categories.

    Categories that a batch has no box of are drawn by the square root of their training images, as
    in the released LVIS configs; no more of them than there are.

    Args:
        image_counts: training images of each category.
    """
    weights = torch.tensor(image_counts, dtype=torch.float32).sqrt()
    for module in model.modules():
        if isinstance(module, FastRCNNOutputLayers) and module.use_fed_loss:
            module.fed_loss_cls_weights.copy_(weights)
            module.fed_loss_num_classes = min(
                module.fed_loss_num_classes, int(weights.count_nonzero())
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


def _report_evaluation(folder: Path) -> Callable[[int, int], None]:
    """Writes how far evaluation is where the progress view reads it."""

    def report(done: int, total: int) -> None:
        with open(folder / METRICS, "a") as file:
            file.write(json.dumps({"evaluated": done, "batches": total}) + "\n")

    return report


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _peak_memory_mib() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
