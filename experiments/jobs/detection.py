"""One run: train, evaluate, record. Called in processes of its own (experiments.launching)."""

import contextlib
import copy
import datetime
import errno
import functools
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import get_detection_dataset_dicts
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig
from submitit.helpers import Checkpointable
from torch import nn

from backbones.weights import encoder_of, load_encoder

from .. import records, studies
from ..costs import environment
from ..costs.detector_cost import detector_cost
from ..costs.training_cost import training_macs
from ..data.stream import Stream, Views
from ..errors import UserError
from ..evaluation.evaluate import PREDICTIONS, evaluate, set_num_classes
from ..recipe import config, initial_values
from ..recipe.config import plain_config
from ..records import LAST_WEIGHTS, METRICS, checkpoints
from ..training import distributed, features
from ..training.fit import fit, training_figures
from .runs import Run


class Execute(Checkpointable):
    """Do a run, or go on with it, unless its record is there.

    Called in each process of the run; everything lies in `run.folder`: log.txt, metrics.json,
    TensorBoard's files, checkpoints, config.yaml, the record. submitit calls it again, with the
    same run, where it was stopped.

    Args:
        work: does the run, and writes its record.
        record: name of that file.
    """

    def __init__(self, work: Callable[[Any], None], record: str):
        self.work, self.record = work, record

    def __call__(self, run: Any) -> str:
        """Returns the record's path."""
        folder = Path(run.folder)
        folder.mkdir(parents=True, exist_ok=True)
        alone = distributed.alone(folder / ".lock")
        with faults_named(folder), distributed.process_group(), alone:
            if not distributed.of_main(lambda: run.done):
                self.work(run)
                distributed.wait()  # or some would leave the group while others need it
        return str(folder / self.record)


_REPORT_EVERY = 2.0  # seconds, of evaluation
_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO}


@contextlib.contextmanager
def faults_named(folder: Path) -> Iterator[None]:
    """A file system that takes no more, and a killed process of the data loader, end in one line,
    whatever came of them later: torch, say, finds that a checkpoint has another length."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        chain = [error]
        while cause := chain[-1].__cause__ or chain[-1].__context__:
            chain.append(cause)
        refusals = [e for e in chain if isinstance(e, OSError) and e.errno in _REFUSALS]
        if refusals:
            file = os.fsdecode(refusals[-1].filename or folder)
            raise UserError(
                f"{file}: {refusals[-1].strerror}. Make room, or mend it: the same command goes on "
                "from the last checkpoint"
            ) from error
        if any("DataLoader worker (pid" in str(e) for e in chain):
            raise UserError(
                "a process that reads images was killed (memory?): lower "
                "dataloader.train.num_workers, or that of dataloader.test; the same command goes "
                "on from the last checkpoint"
            ) from error
        raise


def _execute(run: Run) -> None:
    started = now()
    folder = Path(run.folder)
    studies.find(run.source)  # registers what the study's file defines
    if config.fingerprint(run.cfg, run.data.digest) != run.fingerprint:
        raise UserError(f"{run.source} changed since this run was planned: run the study again")
    config.check_processes(run.cfg, comm.get_world_size())
    log_to(folder)
    cfg = copy.deepcopy(run.cfg)
    set_num_classes(cfg, len(run.data.categories))
    # What is read, whatever the scale's own set is called.
    cfg.dataloader.train.dataset = str(run.data.train)
    cfg.dataloader.test.dataset = str(run.data.val)
    if comm.is_main_process():
        LazyConfig.save(cfg, str(folder / "config.yaml"))
    torch.set_num_threads(cfg.train.threads or distributed.cores())

    # What could fail is done before training: costs, versions.
    tuning, keeps = config.tuning(cfg), config.keeps_features(cfg)
    cost, train_macs = distributed.of_main(
        lambda: (detector_cost(cfg.model), training_macs(cfg.model, tuning, keeps))
    )
    versions, git_commit = environment.versions(), environment.git_commit()

    with distributed.alone(_training_note(run)):
        state = train(cfg, run, train_macs)
    model = instantiate(cfg.model).to(distributed.device())
    model.load_state_dict(state["model"])
    examples = None
    if keeps and not cfg.test.tta_sizes:
        features.feed(model)
        examples = functools.partial(features.kept, model, cfg, "test", run.data.val, root=run.root)
    result = evaluate(model, cfg, run.data.val, folder, _report_evaluation(folder), examples)
    if not comm.is_main_process():
        return

    record = records.Record(
        study=run.study,
        variant=run.variant,
        scale=run.scale,
        size=run.size,
        seed=cfg.train.seed,
        fingerprint=run.fingerprint,
        box=result.box,
        mask=result.mask,
        reach=result.reach,
        predictions=PREDICTIONS,
        params=cost.detector.params,
        macs=cost.detector.macs,
        activations=cost.detector.activations,
        encoder_params=cost.encoder.params,
        encoder_macs=cost.encoder.macs,
        train_macs=train_macs,
        input_size=cost.size,
        **training_figures(cfg, state),
        evaluate_seconds=result.seconds,
        versions=versions,
        git_commit=git_commit,
        started=started,
        finished=now(),
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
    checkpoints.remove_all_but_last(folder)


# Trains a detector, evaluates it, and writes its record.
execute = Execute(_execute, records.RECORD)


def log_to(folder: Path) -> None:
    """Libraries that say what they do say it in the run's log, and in the process's output."""
    for name in ("detectron2", "fvcore"):
        logging.getLogger(name).handlers.clear()  # of a run before, in this process
        setup_logger(str(folder / "log.txt"), distributed_rank=comm.get_rank(), name=name)


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
    return None if checkpoints.wrong(weights) else weights


def train(cfg: DictConfig, run: Run, macs: float | None) -> dict[str, Any]:
    """The last checkpoint of the run's training, done now as far as it is not, or of a run that was
    trained in the same way; `macs` as of `fit`."""
    folder = Path(run.folder)
    last = folder / LAST_WEIGHTS
    twin = distributed.of_main(lambda: _trained_by_another(run))
    if twin is None:
        fit_run(cfg, run, macs)
        if comm.is_main_process():
            note = _training_note(run)
            note.write_text(os.path.relpath(folder, note.parent.parent))
    elif comm.is_main_process():
        last.unlink(missing_ok=True)
        last.symlink_to(os.path.relpath(twin, folder))
    return checkpoints.read(twin or last)


def fit_run(cfg: DictConfig, run: Run, macs: float | None = None) -> None:
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


def now() -> str:
    """ISO 8601, UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
