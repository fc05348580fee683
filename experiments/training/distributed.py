"""One run in several processes: how they find each other, wait, and agree.

Beyond this, `detectron2.utils.comm` says who is who; without a process group it says that there is
one process.
"""

import contextlib
import datetime
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO, TypeVar

import submitit
import torch
import torch.distributed as dist
from detectron2.utils import comm

from ..errors import UserError

T = TypeVar("T")

# How long another command may keep a run, and how long processes of a run wait for each other: for
# one that waits for such a command, reads a large data set, or scores.
_LOCKED = datetime.timedelta(hours=24)
_PATIENCE = _LOCKED + datetime.timedelta(hours=1)
# Between CPUs, whatever the devices: for such waits, and for sums of a step, where who does not
# answer is gone.
_patient: dist.ProcessGroup | None = None
_quick: dist.ProcessGroup | None = None


def started_by_torchrun() -> int:
    """How many processes torchrun started together with this one, itself included; 0 without it."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 0


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that were started together, by torchrun or by submitit, until the block
    ends. Nothing for a process alone, or in a group already.

    GPUs talk by NCCL, CPUs by gloo. Each process uses the GPU of its local rank.
    """
    global _patient, _quick
    if "SUBMITIT_EXECUTOR" in os.environ and "RANK" not in os.environ:
        # All GPUs stay visible: processes of one node talk through them.
        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, rank, world = next(dist.rendezvous("env://"))
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        # torchrun keeps its store when it starts them again: there, processes would find the
        # addresses of those that were killed. (Its agents on several nodes count differently.)
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world)
    _patient = dist.new_group(backend="gloo", timeout=_PATIENCE)
    _quick = dist.new_group(backend="gloo")
    yield
    # Not after an error: the others may be in the middle of something, and end when this one does.
    dist.destroy_process_group()


@contextlib.contextmanager
def alone(path: Path, busy: str = "") -> Iterator[None]:
    """One run at a time: process 0 holds the lock, those of another run wait.

    Raises:
        UserError: for a day; or, with words for one that is busy, at once.
    """
    with open(path, "a") if comm.is_main_process() else contextlib.nullcontext() as file:
        of_main(lambda: _lock(file, path, busy))
        yield


def _lock(file: TextIO, path: Path, busy: str) -> None:
    end = None
    while True:
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if busy:
            raise UserError(busy)
        if end is None:
            end = time.monotonic() + _LOCKED.total_seconds()
            print(f"waiting for another command, which holds {path}", flush=True)
        elif time.monotonic() > end:
            raise UserError(
                f"another command has held {path} for {_hours(_LOCKED)}: call again when it ended"
            )
        time.sleep(0.2)


def wait() -> None:
    """Until all processes are here.

    Raises:
        UserError: one has not come in a day, and which.
    """
    if comm.get_world_size() > 1:
        with _not_for_ever():
            dist.monitored_barrier(_patient, _PATIENCE, wait_all_ranks=True)


def of_main(find: Callable[[], T]) -> T:
    """What process 0 finds, for all: they decide alike, and file systems of clusters show news late
    to other nodes. If it raises, the others end without a word."""
    found, failure = None, None
    if comm.is_main_process():
        try:
            found = find()
        except Exception as error:
            failure = error
    if comm.get_world_size() > 1:
        code = 2 if isinstance(failure, UserError | OSError) else int(failure is not None)
        told = [found, code]
        with _not_for_ever():
            dist.broadcast_object_list(told, group=_patient)
        found, code = told
        if code and failure is None:
            raise SystemExit(code)
    if failure:
        raise failure
    return found


@contextlib.contextmanager
def _not_for_ever() -> Iterator[None]:
    """Raises UserError that names who did not come, if that is what torch says in its words."""
    start = time.monotonic()
    try:
        yield
    except RuntimeError as error:
        if time.monotonic() - start < _PATIENCE.total_seconds():
            raise  # it is gone, not late
        late = re.search(r"Ranks? ([\d, ]+) failed to pass", str(error))
        raise UserError(
            f"process {comm.get_rank()} waited {_hours(_PATIENCE)} for process "
            f"{late[1] if late else 0} of this run: look into its output"
        ) from error


def _hours(span: datetime.timedelta) -> str:
    return f"{span.total_seconds() / 3600:.3g} hours"


def device() -> torch.device:
    """The GPU of this process, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def cores() -> int:
    """Of this machine, for each process on it."""
    own = len(os.sched_getaffinity(0))
    if "SLURM_CPUS_PER_TASK" in os.environ:  # Slurm has divided them, and may have bound us to ours
        return min(own, int(os.environ["SLURM_CPUS_PER_TASK"]))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if comm.get_world_size() > 1 else 1
    return max(1, own // here)


def sums(values: list[float]) -> list[float]:
    """Of each value, over all processes."""
    return summed(torch.tensor(values, dtype=torch.float64)).tolist()


def summed(tensor: torch.Tensor) -> torch.Tensor:
    """Over all processes, in place; on the CPU."""
    if comm.get_world_size() > 1:
        dist.all_reduce(tensor, group=_quick)
    return tensor
