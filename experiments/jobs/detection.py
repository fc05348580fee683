"""A run that trains a detector: its steps."""

import copy
import functools
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.data import get_detection_dataset_dicts
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from backbones.weights import encoder_of, load_encoder

from .. import studies
from ..costs.detector_cost import detector_cost
from ..costs.training_cost import training_macs
from ..data.stream import Stream, Views
from ..evaluation.evaluate import PREDICTIONS, evaluate, set_num_classes
from ..recipe import config, identity, initial_values
from ..records import LAST_WEIGHTS, METRICS, checkpoints
from ..training import distributed, features
from ..training.fit import fit
from .job import Job
from .runs import DetectionRun

_REPORT_EVERY = 2.0  # seconds, of evaluation


class Detection(Job):
    """Trains a detector, evaluates it, and writes its record."""

    CHANGED = "{run.source} changed since this run was planned: run the study again"

    def __init__(self, run: DetectionRun):
        super().__init__(run)
        studies.find(run.source)  # registers what the study's file defines

    def prepare(self) -> tuple[DictConfig, dict[str, Any]]:
        run, data, cfg = self.run, self.run.data, copy.deepcopy(self.run.cfg)
        set_num_classes(cfg, len(data.categories))
        # What is read, whatever the scale's own set is called.
        cfg.dataloader.train.dataset = str(data.train)
        cfg.dataloader.test.dataset = str(data.val)
        trains = config.tuning(cfg), config.keeps_features(cfg)
        cost, macs = distributed.of_main(
            lambda: (detector_cost(cfg.model), training_macs(cfg.model, *trains))
        )
        return cfg, dict(
            study=run.study,
            variant=run.variant,
            params=cost.detector.params,
            macs=cost.detector.macs,
            activations=cost.detector.activations,
            encoder_params=cost.encoder.params,
            encoder_macs=cost.encoder.macs,
            train_macs=macs,
            input_size=cost.size,
            data=dict(
                kind=data.val.kind,
                images=data.images,
                train=data.train.json_file,
                val=data.val.json_file,
                digest=data.digest,
            ),
        )

    def fit(self, cfg: DictConfig, macs: int | None) -> dict[str, Any]:
        """Or the last checkpoint of a run that was trained in the same way."""
        run, folder, note = self.run, self.folder, _training_note(self.run)
        last = folder / LAST_WEIGHTS
        with distributed.alone(note):
            twin = distributed.of_main(lambda: _trained_by_another(run))
            if twin is None:
                fit_run(cfg, run, macs)
                if comm.is_main_process():
                    note.write_text(os.path.relpath(folder, note.parent.parent))
            elif comm.is_main_process():
                last.unlink(missing_ok=True)
                last.symlink_to(os.path.relpath(twin, folder))
            return checkpoints.read(twin or last)

    def finish(self, cfg: DictConfig, model: nn.Module) -> dict[str, Any]:
        report, val, examples = _report_evaluation(self.folder), self.run.data.val, None
        if config.keeps_features(cfg) and not cfg.test.tta_sizes:
            features.feed(model)
            examples = functools.partial(features.kept, model, cfg, "test", val, root=self.run.root)
        result = evaluate(model, cfg, val, self.folder, report, examples)
        return dict(
            box=result.box,
            mask=result.mask,
            reach=result.reach,
            predictions=PREDICTIONS,
            evaluate_seconds=result.seconds,
        )


def _training_note(run: DetectionRun) -> Path:
    """Names the run that was trained, for runs that differ from it at test time only; and the lock
    of that training."""
    mark = identity.training_fingerprint(run.cfg, run.data.digest)
    folder = Path(run.folder).parent.parent / ".trained"
    folder.mkdir(exist_ok=True)
    return folder / mark


def _trained_by_another(run: DetectionRun) -> Path | None:
    """The weights of a run at this scale that was trained as this one would be."""
    note = _training_note(run)
    name = note.read_text() if note.is_file() else ""
    weights = note.parent.parent / name / LAST_WEIGHTS
    if not name or not weights.is_file() or weights.parent.samefile(run.folder):
        return None
    return None if checkpoints.wrong(weights) else weights


def fit_run(cfg: DictConfig, run: DetectionRun, macs: float | None = None) -> None:
    """Train, from the last checkpoint in the run's folder if there is one, to `LAST_WEIGHTS`;
    `macs` as of `fit`."""
    model = initial_values.construct(lambda: instantiate(cfg.model), cfg.train.seed)
    set_federated_loss(model, run.data.image_counts)
    _, encoder = encoder_of(model)
    if weights := run.weights:
        load_encoder(encoder, weights, show=logging.getLogger("detectron2").info)

    if run.data.has_rle:
        cfg.dataloader.train.mapper.instance_mask_format = "bitmask"

    @functools.cache
    def dicts() -> list[dict]:
        return get_detection_dataset_dicts(run.data.train.register())

    kept = None
    if config.keeps_features(cfg):
        features.feed(model)
        kept = features.kept(model, cfg, "train", run.data.train, dicts(), run.root)

    def stream() -> Stream:
        words = cfg.dataloader.train
        mapper, views = instantiate(words.mapper), kept
        if words.get("views", 0) and views is None:
            views = Views(dicts(), mapper, words.views)
        return Stream(dicts(), mapper, cfg.train.seed, words.repeat_threshold, views)

    fit(cfg, Path(run.folder), model, encoder, stream, macs)


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


def _report_evaluation(folder: Path) -> Callable[[int, int], None]:
    """Process 0 writes how far evaluation is where the progress view reads it, now and then."""
    first: tuple[float, int] | None = None  # when, with how many images done before
    last = 0.0

    def report(done: int, images: int) -> None:
        nonlocal first, last
        now = time.monotonic()
        first = first or (now, done)
        if not comm.is_main_process() or (done < images and now - last < _REPORT_EVERY):
            return
        last = now
        line = dict(evaluated=done, images=images)
        if done > first[1]:
            speed = (done - first[1]) / (now - first[0])
            line |= dict(images_per_second=speed, eta_seconds=(images - done) / speed)
        with open(folder / METRICS, "a") as file:
            file.write(json.dumps(line) + "\n")

    return report
