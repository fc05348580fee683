"""Runs in processes of their own, some at a time, with one live view of all of them.

submitit starts each run in a process and keeps its output; a thread pool holds back those that
have no core or GPU yet.
"""

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import submitit
import torch

from .runs import Run
from .train import execute

_MINUTES = 60 * 24 * 365  # submitit wants a limit
_JOB_FOLDER = "job"  # in the run's folder: submitit's files and the process's output


@dataclass
class Progress:
    """What the launcher knows of one run; how far it is stands in the run's own files."""

    run: Run
    state: str = "waiting"  # then "running", and "done", "failed" or "stopped"
    error: str = ""  # last line of what went wrong
    log: Path | None = None


@dataclass
class Launch:
    """The runs of one command under way."""

    runs: list[Progress]
    futures: list[Future] = field(default_factory=list)
    jobs: list[submitit.Job] = field(default_factory=list)
    pool: ThreadPoolExecutor | None = None
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def finished(self) -> bool:
        """Whether no run is waiting or running any more."""
        return all(future.done() for future in self.futures)

    def stop(self) -> None:
        """End running processes and start no more; checkpoints stay."""
        self.stopping.set()
        for future in self.futures:
            future.cancel()
        for job in self.jobs:
            job.cancel()
        self.pool.shutdown(wait=True, cancel_futures=True)
        for progress in self.runs:
            if progress.state in ("waiting", "running"):
                progress.state = "stopped"


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


def _last_line(error: submitit.core.utils.FailedJobError) -> str:
    """The exception in the traceback that submitit wraps between lines of its own."""
    trace = str(error).split("You can check full logs")[0]
    lines = [line.strip() for line in trace.splitlines() if line.strip(" -")]
    return lines[-1] if lines else "failed without a message"


def _gpus() -> list[int]:
    """Numbers of the GPUs this process may use, as in CUDA_VISIBLE_DEVICES."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    numbers = [int(n) for n in visible.split(",") if n.strip().isdigit()]
    return numbers[:count] if numbers else list(range(count))


def default_jobs(runs: list[Run], cores: int) -> int:
    """How many runs go side by side: one per GPU, or as many as the cores have threads for."""
    if torch.cuda.is_available():
        return torch.cuda.device_count()
    threads = max((run.cfg.train.threads or cores) for run in runs)
    return max(1, cores // threads)


def launch(runs: list[Run], jobs: int, execute: Callable[[Run], str] = execute) -> Launch:
    """Start the runs, `jobs` at a time, in order."""
    launched = Launch([Progress(run) for run in runs])
    gpus = _gpus()
    slots: queue.SimpleQueue[int] = queue.SimpleQueue()
    for slot in range(jobs):
        slots.put(slot)

    def one(progress: Progress) -> None:
        slot = slots.get()
        try:
            folder = Path(progress.run.folder) / _JOB_FOLDER
            executor = submitit.LocalExecutor(folder)
            gpu = (gpus[slot % len(gpus)],) if gpus else ()
            executor.update_parameters(
                timeout_min=_MINUTES,
                gpus_per_node=len(gpu),
                visible_gpus=gpu,
                stderr_to_stdout=True,
            )
            with _stderr_to(folder / "submitit.log"):
                job = executor.submit(execute, progress.run)
            job._results_timeout_s = 1  # submitit waits 15 s for the result of a stopped process
            launched.jobs.append(job)
            if launched.stopping.is_set():
                job.cancel()
            progress.log = Path(job.paths.stdout)
            progress.state = "running"
            job.result()
            progress.state = "done"
        except submitit.core.utils.FailedJobError as error:
            progress.state, progress.error = "failed", _last_line(error)
        except submitit.core.utils.UncompletedJobError:
            progress.state, progress.error = "failed", "its process was killed (memory?)"
        except Exception as error:  # of submitit's own files: no space, no permission
            progress.state, progress.error = "failed", f"{type(error).__name__}: {error}"
        finally:
            slots.put(slot)

    launched.pool = ThreadPoolExecutor(max_workers=jobs)
    launched.futures = [launched.pool.submit(one, progress) for progress in launched.runs]
    return launched
