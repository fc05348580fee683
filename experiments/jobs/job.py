"""How a run is done, in processes of its own: prepare, fit, finish, record."""

import contextlib
import datetime
import errno
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from detectron2.utils.registry import locate
from omegaconf import DictConfig
from torch import nn

from .. import records
from ..costs import environment
from ..errors import UserError
from ..recipe import checks, identity
from ..records import checkpoints
from ..training import distributed
from ..training.fit import training_figures
from .planned import Run

_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO}


class Job(ABC):
    """The steps of one kind of run, each called in all its processes; `do` records what they find,
    the last one."""

    CHANGED: str  # what to say if the run is not what was planned any more

    def __init__(self, run: Run):
        self.run, self.folder = run, Path(run.folder)

    @abstractmethod
    def prepare(self) -> tuple[DictConfig, dict[str, Any]]:
        """What could fail before training. Returns the config with what the data say, and what the
        record has of both, `train_macs` among it."""

    @abstractmethod
    def fit(self, cfg: DictConfig, macs: int | None) -> dict[str, Any]:
        """Train, as far as it is not done; returns the last checkpoint. `macs` as of `fit`."""

    @abstractmethod
    def finish(self, cfg: DictConfig, model: nn.Module) -> dict[str, Any]:
        """What the record has of the trained model."""


def do(run: Run) -> str:
    """See `Run.__call__`."""
    folder = Path(run.folder)
    folder.mkdir(parents=True, exist_ok=True)
    alone = distributed.alone(folder / ".lock")
    with _faults_named(folder), distributed.process_group(), alone:
        if not distributed.of_main(lambda: run.done):
            _do(run, folder)
            distributed.wait()  # or some would leave the group while others need it
    return str(folder / run.KIND.FILE)


def _do(run: Run, folder: Path) -> None:
    started, job = now(), locate(run.JOB)(run)
    if identity.fingerprint(run.cfg, run.data.digest) != run.fingerprint:
        raise UserError(job.CHANGED.format(run=run))
    checks.check_processes(run.cfg, comm.get_world_size())
    _log_to(folder)
    torch.set_num_threads(run.cfg.train.threads or distributed.cores())
    cfg, known = job.prepare()
    if comm.is_main_process():
        LazyConfig.save(cfg, str(folder / "config.yaml"))
    known |= dict(versions=environment.versions(), git_commit=environment.git_commit())
    state = job.fit(cfg, known["train_macs"])
    model = instantiate(cfg.model).to(distributed.device())
    model.load_state_dict(state["model"])
    known |= job.finish(cfg, model) | training_figures(cfg, state)
    if comm.is_main_process():
        known |= {k: getattr(run, k) for k in ("scale", "size", "seed", "fingerprint")}
        known |= dict(started=started, finished=now(), config=identity.plain_config(cfg))
        records.write(folder, run.KIND(**known))
        checkpoints.remove_all_but_last(folder)


@contextlib.contextmanager
def _faults_named(folder: Path) -> Iterator[None]:
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


def _log_to(folder: Path) -> None:
    """Libraries that say what they do say it in the run's log, and in the process's output."""
    for name in ("detectron2", "fvcore"):
        logging.getLogger(name).handlers.clear()  # of a run before, in this process
        setup_logger(str(folder / "log.txt"), distributed_rank=comm.get_rank(), name=name)


def now() -> str:
    """ISO 8601, UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
