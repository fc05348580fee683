"""The training loop's overhead: a run's whole loop beside forward, backward and optimizer step.

"bare" is what a plain Python loop does: zero_grad, forward under autocast, backward, clipping as
the recipe says, optimizer.step. "suite" is what a run does, with all its hooks: learning rates,
running statistics, checks of every number, scalars, writers, the moving average where asked for.
Both train one model in one process on the same images, which are in memory, and take turns step by
step, so that what else the machine does hits both alike. Shown are medians over windows of as many
steps as lie between two lines of the log (ViT-B: one, each logged) and, in brackets, the lowest and
the highest. Writing a checkpoint is shown apart: its seconds, and its share of the time between
two of them.
"""

import collections
import contextlib
import itertools
import logging
import math
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pandas as pd
import torch
from detectron2.utils.events import EventStorage
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig
from rich.console import Console
from tabulate import tabulate
from torch import nn

from experiments import studies
from experiments.costs.devices import autocast
from experiments.data import catalog
from experiments.data.stream import training_loader
from experiments.forecast import budget
from experiments.jobs import detection, runs
from experiments.training import distributed, fit
from experiments.training.hooks import Checkpoints
from experiments.training.training_loop import Trainer

from . import page

SUITE = "training"


@dataclass(frozen=True)
class Case:
    """A training of study "global-vs-conv", and how many steps of it are measured."""

    name: str
    scale: str
    size: str
    words: tuple[tuple[str, object], ...] = ()
    windows: int = 8
    window: int = 20  # steps of each row
    warm_up: int = 20  # of each row; the first line of the log imports TensorBoard


_TWO_PASSES = (
    ("dataloader.train.total_batch_size", 2),
    ("dataloader.train.micro_batch_size", 1),
    ("train.init_weights", "none"),
    ("train.log_period", 1),  # in so few steps the recipe's 20 would never come
)
# What a loop adds does not depend on pixels: its share of a step on 1024 px is smaller still.
_SMALL = (("dataloader.image_size", 256), ("model.backbone.img_size", 256), ("train.threads", 1))
CASES = (
    Case("vit-mini, 128 px, 1 pass of 8", "mini", "vit-mini"),
    Case("the same with EMA", "mini", "vit-mini", (("train.ema", 0.999),)),
    Case("vit-b, 256 px, 2 passes of 1", "coco", "vit-b", _TWO_PASSES + _SMALL, 6, 1, 1),
)
ROWS = tuple(case.name for case in CASES)


def measured(case: Case, data: catalog.Data | None = None) -> tuple[list[dict], dict[str, float]]:
    """Of each window, seconds of a step of each row, by the clock and of CPU time; and what writing
    a checkpoint takes: seconds, bytes, and the seconds of training between two of them.

    Args:
        data: what to train on at mini scale, default: its own; coco's images are noise.
    """
    study = studies.find("global-vs-conv")
    (row,) = runs.rows(study, case.scale, case.size, dict(case.words), ["global"])
    data = data or catalog.prepare("mini")
    found = []

    def alternate(trainer: Trainer, start: int, end: int) -> None:
        found.extend(_alternate(trainer, case))

    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "stdout", "w") as out:
        run = runs.DetectionRun(
            study=study.name,
            source=study.name,
            home="",
            variant="global",
            scale=case.scale,
            size=case.size,
            seed=0,
            fingerprint="",
            folder=folder,
            cfg=row.cfg,
            data=data,
        )
        torch.set_num_threads(row.cfg.train.threads or distributed.cores())
        # `fit` builds the loop as for any run; only its images and its repetition are replaced.
        with (
            contextlib.redirect_stdout(out),
            mock.patch.object(fit, "training_loader", _in_memory(case, row.cfg)),
            mock.patch.object(Trainer, "train", alternate),
        ):
            setup_logger(str(Path(folder) / "log.txt"), name="detectron2")
            detection.fit_run(row.cfg, run)
            logging.getLogger("detectron2").handlers.clear()
    return tuple(found)


def _in_memory(case: Case, cfg: DictConfig) -> Callable[..., list]:
    """The loader of a run, but only its first micro batches."""

    def build(*args, per_step: int, **words) -> list:
        if case.scale == "mini":
            loader = training_loader(*args, per_step=per_step, **words)
            return list(itertools.islice(loader, case.window * per_step))
        images = range(words["batch_size"])
        return [
            [budget._image(cfg.dataloader.image_size) for _ in images]
            for _ in range(case.window * per_step)
        ]

    return build


def _alternate(trainer: Trainer, case: Case) -> tuple[list[dict], dict[str, float]]:
    """A step of each row in turn, with the same images, as `measured` returns it."""
    batches = trainer.data_loader
    ours, theirs = itertools.cycle(batches), itertools.cycle(batches)
    trainer.data_loader = ours
    (saved,) = (hook for hook in trainer._hooks if isinstance(hook, Checkpoints))
    period, minutes = saved.period, saved.minutes
    saved.period = saved.minutes = math.inf

    def suite() -> None:
        trainer.before_step()
        trainer.run_step()
        trainer.after_step()
        trainer.iter += 1

    rows = dict(bare=lambda: _bare_step(trainer, theirs), suite=suite)
    trainer.iter = trainer.start_iter = 0
    trainer.max_iter = math.inf
    samples = []
    with EventStorage() as trainer.storage:
        trainer.before_train()
        for _ in range(case.warm_up):
            for step in rows.values():
                step()
        for number in range(case.windows):
            sums = collections.Counter()
            for turn in range(case.window):
                # Who comes second has the other's weights in the caches.
                for name in sorted(rows, reverse=bool((number + turn) % 2)):
                    wall, cpu = time.perf_counter(), time.process_time()
                    rows[name]()
                    _synchronize()
                    sums[name, "wall"] += time.perf_counter() - wall
                    sums[name, "cpu"] += time.process_time() - cpu
            samples += [
                dict(row=name, window=number)
                | {kind: sums[name, kind] / case.window for kind in ("wall", "cpu")}
                for name in rows
            ]
        saved.period = 1
        start = time.perf_counter()
        saved.after_step()
        seconds = time.perf_counter() - start
        trainer.after_train()
    (file,) = saved.folder.glob("model_*.pth")
    step = statistics.median(s["wall"] for s in samples if s["row"] == "suite")
    between = min(period * step, 60 * minutes)
    return samples, dict(seconds=seconds, bytes=file.stat().st_size, between=between)


def _bare_step(trainer: Trainer, batches: Iterator) -> None:
    model, optimizer = trainer.model, trainer.optimizer
    optimizer.zero_grad()
    for _ in range(trainer.micro_batches):
        with autocast(trainer.device, trainer.precision):
            losses = model(next(batches))
        (sum(losses.values()) / trainer.micro_batches).backward()
    if trainer.clip_grad_norm:
        nn.utils.clip_grad_norm_(model.parameters(), trainer.clip_grad_norm)
    optimizer.step()


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def table(case: Case, samples: list[dict], checkpoint: dict[str, float]) -> pd.DataFrame:
    """One line: medians over windows, the overhead in percent with its range."""
    found = pd.DataFrame(samples).pivot(index="window", columns="row", values=["wall", "cpu"])
    line = dict(case=case.name, windows=case.windows, steps=case.windows * case.window)
    line |= {f"{row}_seconds": found["wall", row].median() for row in ("bare", "suite")}
    for kind in ("wall", "cpu"):
        overhead = 100 * (found[kind, "suite"] / found[kind, "bare"] - 1)
        line |= {f"{kind}_overhead": overhead.median(), f"{kind}_overhead_min": overhead.min()}
        line[f"{kind}_overhead_max"] = overhead.max()
    line |= {f"checkpoint_{name}": value for name, value in checkpoint.items()}
    return pd.DataFrame([line])


def shown(found: pd.DataFrame, style: str = "simple") -> str:
    """The table, as text."""

    def spread(name: str) -> list[str]:
        values = zip(*(found[f"{name}{end}"] for end in ("", "_min", "_max")), strict=True)
        return [f"{middle:+.1f} % ({low:+.1f} .. {high:+.1f})" for middle, low, high in values]

    share = 100 * found.checkpoint_seconds / found.checkpoint_between
    columns = {
        "": found.case,
        "bare s": [f"{value:.3g}" for value in found.bare_seconds],
        "suite s": [f"{value:.3g}" for value in found.suite_seconds],
        "overhead": spread("wall_overhead"),
        "of CPU time": spread("cpu_overhead"),
        "steps of each": found.steps,
        "checkpoint s": [f"{value:.2f}" for value in found.checkpoint_seconds],
        "MB": [f"{value / 1e6:,.0f}" for value in found.checkpoint_bytes],
        "every s": [f"{value:,.0f}" for value in found.checkpoint_between],
        "share": [f"{value:.1f} %" for value in share],
    }
    return tabulate(columns, headers="keys", tablefmt=style, disable_numparse=True)


def bench(to: Path, provenance: dict, console: Console) -> None:
    """Measure, print the table, and keep it as training.csv and training.md."""
    lines = []
    processes = multiprocessing.get_context("spawn")
    for number, case in enumerate(CASES, start=1):
        console.print(f"[{number}/{len(CASES)}] {case.name}")
        with processes.Pool(1) as pool:  # of its own: threads, memory
            lines.append(table(case, *pool.apply(measured, (case,))))
    found = pd.concat(lines).assign(**provenance)
    console.print(shown(found))
    text = [shown(found, "pipe"), "", *__doc__.splitlines()[2:]]
    written = page.write(to, SUITE, found, text, provenance)
    console.print(f"\nwritten: {'  '.join(map(str, written))}")
