"""Runs in processes of their own, some at a time, with one live view of all of them.

submitit starts each run in a process and keeps its output; a thread pool holds back those that
have no core or GPU yet.
"""

import contextlib
import os
import pickle
import queue
import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import submitit
import torch

from ..errors import UserError
from ..jobs.planned import Run, Stages
from .launcher import Launcher
from .view import Progress

_MINUTES = 60 * 24 * 365  # submitit wants a limit
_LITTLE = 1 << 20  # bytes, too few for what a process leaves at its end
_JOB_FOLDER = "job"  # in the run's folder: submitit's files and the process's output


@dataclass
class LocalLaunch:
    """Runs under way, in the order of their start."""

    runs: list[Progress]
    futures: list[Future] = field(default_factory=list)
    jobs: list[submitit.Job] = field(default_factory=list)
    pool: ThreadPoolExecutor | None = None
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def finished(self) -> bool:
        return all(future.done() for future in self.futures)

    def stop(self) -> str:
        """End running processes and start no more; checkpoints stay. Returns what to say."""
        self.stopping.set()
        for future in self.futures:
            future.cancel()
        processes = [pid for job in self.jobs for pid in _processes(job)]
        for job in self.jobs:
            job.cancel()
        self.pool.shutdown(wait=True, cancel_futures=True)
        # Told twice to stop, by a terminal and by us, submitit's helper leaves them alone.
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for progress in self.runs:
            if progress.state in ("waiting", "running"):
                progress.state = "stopped"
        return "stopped: the same command goes on from the last checkpoints"


def _processes(job: submitit.LocalJob) -> list[int]:
    """Of a job that runs: submitit's helper, after which the job is named, has started them."""
    try:
        children = Path(f"/proc/{job.job_id}/task/{job.job_id}/children").read_text()
    except OSError:  # it has ended
        return []
    return [int(word) for word in children.split()]


_stderr_lock = threading.Lock()


@contextlib.contextmanager
def _stderr_to(path: Path) -> Iterator[None]:
    """Processes started meanwhile inherit `path` as stderr: submitit's own helper prints a
    traceback there when it is told to stop."""
    with _stderr_lock, open(path, "a") as file:
        terminal = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


# Last line of a process that another one of its run has left alone.
_LEFT_ALONE = re.compile(
    r"Connection (closed|reset|refused)|recvBytes|gloo|NCCL|Dist\w+Error|monitoredBarrier"
)


def first_error(job: submitit.Job) -> tuple[str, Path]:
    """The last line of what went wrong in an ended job, "" if nothing did, and the log to look
    into: of the process whose fault it was, where the others only lost their connection to it."""
    tasks = [job.task(i) for i in range(job.num_tasks)]
    errors = []
    for task in tasks:
        path = task.paths.result_pickle
        outcome, result = pickle.loads(path.read_bytes()) if path.is_file() else ("killed", "")
        if outcome != "success":
            lines = [line.strip() for line in result.splitlines() if line.strip()]
            errors.append((lines[-1] if lines else "", Path(task.paths.stdout)))
    if not errors:
        return "", Path(job.paths.stdout)
    # Faults of its own first, then processes that left nothing, then those that were left alone.
    line, log = min(errors, key=lambda e: (bool(_LEFT_ALONE.search(e[0])), not e[0]))
    line = line.removeprefix("experiments.errors.UserError: ")
    return line or _why_silent(log.parent), log


def _why_silent(folder: Path) -> str:
    """Of a process that left no word in its folder."""
    disk = os.statvfs(folder)
    if disk.f_flag & os.ST_RDONLY or disk.f_bavail * disk.f_frsize < _LITTLE:
        why = "is read-only" if disk.f_flag & os.ST_RDONLY else "has no space left"
        return f"{folder} {why}: mend that, the same command goes on from the last checkpoint"
    return "its process was killed (memory?)"


def _gpus() -> list[int]:
    """Numbers of the GPUs this process may use, as in CUDA_VISIBLE_DEVICES."""
    if not torch.cuda.is_available():  # however they are hidden, as by -1
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    words = [word.strip() for word in visible.split(",") if word.strip()]
    if not all(word.isdigit() for word in words):
        raise UserError(f"CUDA_VISIBLE_DEVICES={visible}: give GPUs by number, as in 0,1")
    count = torch.cuda.device_count()
    return [int(word) for word in words][:count] or list(range(count))


def default_jobs(runs: list[Run], cores: int, processes: int = 1) -> int:
    """How many runs go side by side: as many as there are GPUs, or cores for their threads.

    Args:
        processes: of each run.
    """
    if torch.cuda.is_available():
        return max(1, torch.cuda.device_count() // processes)
    threads = max((run.cfg.train.threads or max(1, cores // processes)) for run in runs)
    return max(1, cores // (threads * processes))


def check_gpus(processes: int) -> None:
    """Raises UserError if this machine has GPUs, but fewer than a run wants."""
    count = len(_gpus())
    if 0 < count < processes:
        raise UserError(
            f"GPUS={processes}, but this machine has {count}: give fewer, or several machines by "
            "LAUNCHER=slurm or torchrun (docs/cluster.md)"
        )


class Local(Launcher):
    """Processes of this machine; one stage after the other."""

    def start(self, stages: Stages) -> Iterator[LocalLaunch]:
        cores = len(os.sched_getaffinity(0))
        for runs in stages:
            check_gpus(self.processes)
            yield self._launch(runs, self.jobs or default_jobs(runs, cores, self.processes))

    def _launch(self, runs: list[Run], jobs: int) -> LocalLaunch:
        """Start the runs, `jobs` at a time, in order."""
        launched = LocalLaunch([Progress(run) for run in runs])
        gpus = _gpus()
        slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(jobs):
            slots.put(slot)

        def one(progress: Progress) -> None:
            slot = slots.get()
            try:
                folder = Path(progress.run.folder) / _JOB_FOLDER
                executor = submitit.LocalExecutor(folder)
                ranks = range(self.processes if gpus else 0)
                own = [gpus[(slot * self.processes + i) % len(gpus)] for i in ranks]
                executor.update_parameters(
                    timeout_min=_MINUTES,
                    tasks_per_node=self.processes,
                    gpus_per_node=len(own),
                    visible_gpus=own,
                    stderr_to_stdout=True,
                )
                with _stderr_to(folder / "submitit.log"):
                    job = executor.submit(progress.run)
                launched.jobs.append(job)
                if launched.stopping.is_set():
                    job.cancel()
                progress.log = Path(job.paths.stdout)
                progress.state = "running"
                job.wait()
                progress.error, progress.log = first_error(job)
                progress.state = "failed" if progress.error else "done"
            except Exception as error:  # of submitit's own files: no space, no permission
                progress.state, progress.error = "failed", f"{type(error).__name__}: {error}"
            finally:
                slots.put(slot)

        launched.pool = ThreadPoolExecutor(max_workers=jobs)
        launched.futures = [launched.pool.submit(one, progress) for progress in launched.runs]
        return launched
