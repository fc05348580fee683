"""Runs as jobs of a Slurm cluster: one array for all, followed by `squeue`, requeued and resumed.

submitit submits the jobs and requeues them at a time limit or when they are preempted. Whoever
calls the same command again follows jobs that are waiting or running, instead of submitting them
twice: each run's folder notes its job before that is submitted. What became of a job that ended is
read from what it left (record, result, log), because clusters without accounting do not know.
"""

import contextlib
import io
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError, JobPaths

from ..errors import UserError
from ..jobs import pretraining_runs
from ..jobs.planned import Run, Stages
from ..json_files import write_json
from ..recipe import identity
from ..records import VERSION, read_json
from .launcher import Launcher
from .local import first_error
from .settings import Settings
from .view import Progress

_NOTE = "slurm.json"  # in a run's folder: which job of which array
_EVERY_S = 5.0  # between calls of squeue
_PATIENCE_S = 30.0  # for an answer of squeue
_TIME_LIMITS = 1000  # how often a job may reach its time limit
# Of squeue; others are of jobs that go on, or will.
_ENDED = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "REVOKED", "TIMEOUT",
)  # fmt: skip
# A signal to checkpoint that comes before Python listens to it would end the process.
_PYTHON = ["bash", "-c", 'trap "" USR2; exec "$0" "$@"', sys.executable]


@dataclass(frozen=True)
class _Job:
    """Where submitit keeps what belongs to a run's job."""

    folder: Path  # of the array, whose name is the array's in Slurm and no other's
    index: int | None  # in the array; None: the job of one run

    @property
    def id(self) -> str:
        """Slurm's; "" if it was never told."""
        for path in self.folder.glob("*_submission.sh"):
            array = path.name.removesuffix("_submission.sh")
            return array if self.index is None else f"{array}_{self.index}"
        return ""

    @property
    def log(self) -> Path | None:
        """The output of its first process."""
        return JobPaths(self.folder, self.id).stdout if self.id else None

    @property
    def results(self) -> list[Path]:
        """What its processes leave where they end by themselves."""
        return list(self.folder.glob(f"{self.id}_*_result.pkl")) if self.id else []


def _noted_job(run: Run) -> _Job | None:
    """The job that was submitted for a run last."""
    path = Path(run.folder) / _NOTE
    if not path.is_file():
        return None
    note = read_json(path)
    return _Job((path.parent / note["jobs"]).resolve(), note["index"])


def _write_note(run: Run, job: _Job) -> None:
    folder = Path(run.folder)
    folder.mkdir(parents=True, exist_ok=True)
    jobs = os.path.relpath(job.folder, folder)
    write_json(folder / _NOTE, dict(version=VERSION, jobs=jobs, index=job.index))


def _queue(jobs: Sequence[_Job]) -> dict[_Job, tuple[str, str]]:
    """State and reason of those jobs that Slurm still knows.

    Raises:
        UserError: Slurm does not answer.
    """
    folders = {job.folder.name: job.folder for job in jobs}
    if not folders:
        return {}
    command = ["squeue", f"--user={os.getuid()}", f"--name={','.join(folders)}", "--states=all"]
    command += ["--array", "--noheader", "--format=%i|%T|%r|%j"]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=_PATIENCE_S
        )
    except subprocess.CalledProcessError as error:
        raise UserError(f"squeue failed: {_one_line(error.stderr)}") from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"squeue has no answer after {_PATIENCE_S:.0f} s") from error
    found = {}
    for line in answer.stdout.splitlines():
        number, state, reason, name = line.split("|", maxsplit=3)
        _, array, index = number.partition("_")
        found[_Job(folders[name], int(index) if array else None)] = (state, reason)
    return found


def _one_line(words: str) -> str:
    """What Slurm's commands say, without their prefixes."""
    lines = [re.sub(r"^\w+: (error|fatal): ", "", line) for line in words.splitlines()]
    return "; ".join(line.strip() for line in lines if line.strip()) or "it does not say why"


@dataclass
class SlurmLaunch:
    """The runs of one command as jobs of a cluster."""

    runs: list[Progress]
    jobs: list[_Job]
    _looked: float = float("-inf")  # time.monotonic() of the last look
    _gone: set[_Job] = field(default_factory=set)  # ended without a record, as it looked then

    @property
    def finished(self) -> bool:
        """Asks Slurm now and then."""
        if time.monotonic() - self._looked > _EVERY_S:
            self._look()
            self._looked = time.monotonic()
        return not self._unfinished()

    def stop(self) -> str:
        """Leave the jobs alone; returns what to tell the user."""
        ids = {job.id.partition("_")[0] for _, job in self._unfinished() if job.id}
        return (
            f"the jobs go on, the same command follows them again; to end them: "
            f"scancel {' '.join(sorted(ids, key=int))}"
        )

    def _unfinished(self) -> list[tuple[Progress, _Job]]:
        return [
            (progress, job)
            for progress, job in zip(self.runs, self.jobs, strict=True)
            if progress.state not in ("done", "failed")
        ]

    def _look(self) -> None:
        """Bring the states up to date; they stay while Slurm does not answer."""
        unfinished = self._unfinished()
        try:
            queue = _queue([job for _, job in unfinished])
        except UserError:
            return
        gone = set()
        for progress, job in unfinished:
            state, reason = queue.get(job, ("", ""))
            progress.log = job.log
            if progress.run.done:
                progress.state = "done"
            elif state and state not in _ENDED:
                progress.state = _state(state, reason, bool(job.log and job.log.is_file()))
            elif job not in self._gone:
                # Files of other nodes are seen late, and a job that is requeued is between states.
                gone.add(job)
            else:
                progress.error, progress.log = _error(job, state)
                progress.state = "failed" if progress.error else "done"
        self._gone = gone


def _state(state: str, reason: str, began: bool) -> str:
    """Of a job in the queue, in a launcher's words."""
    if state not in ("PENDING", "CONFIGURING", "REQUEUED", "SUSPENDED"):
        return "running"
    word = state.lower() if state == "SUSPENDED" else "requeued" if began else "waiting"
    return word if reason == "None" else f"{word} ({reason})"


def _error(job: _Job, state: str) -> tuple[str, Path | None]:
    """Why a job ended without a record, and the log to look into: the exception of one of its
    processes, or else the last words about it, of Slurm if it has any. "" after success: the record
    is not seen here yet."""
    if job.results:
        last = max(int(path.name.split("_")[-2]) for path in job.results)
        return first_error(submitit.SlurmJob(job.folder, job.id, range(last + 1)))
    ended = f"its job {job.id} ended{f' as {state}' if state else ' without a record'}"
    lines = []
    if job.log and job.log.is_file():
        lines = [line.strip() for line in job.log.read_text(errors="replace").splitlines()]
    told = [line for line in lines if line]
    slurm = [line for line in told if re.match(r"(slurmstepd|srun)\S*: error: ", line)]
    return ": ".join([ended, *(slurm or told)[-1:]]), job.log


class Slurm(Launcher):
    """Jobs of a cluster. All is submitted at once: whoever called may go."""

    here = False

    def __init__(self, jobs: int, processes: int, settings: Settings):
        super().__init__(jobs, processes)
        self.settings = settings

    def start(self, stages: Stages) -> Iterator[SlurmLaunch]:
        launched = SlurmLaunch([], [])
        for runs in stages:
            self._add(runs, launched)
        if launched.runs:
            yield launched

    def _add(self, runs: list[Run], before: SlurmLaunch) -> None:
        """Submit runs, but those whose jobs wait or run already. Those that start from a
        pre-training among the ones before come after its job, whether somebody follows them here
        or not.

        Raises:
            UserError: Slurm refuses, with its own words; none of these runs is submitted then.
        """
        pretrained = {
            pretraining_runs.word_of(progress.run): job
            for progress, job in zip(before.runs, before.jobs, strict=True)
        }
        starts = [pretrained.get(run.cfg.train.init_weights) for run in runs]
        noted = [_noted_job(run) for run in runs]
        queue = _queue([job for job in noted if job])
        known = [job if job and queue.get(job, _ENDED)[0] not in _ENDED else None for job in noted]
        # A run that differs from another at test time only takes that one's weights: it is later.
        marks = [identity.training_fingerprint(run.cfg, run.data.digest) for run in runs]
        for repeated, start in itertools.product((False, True), dict.fromkeys(starts)):
            new = [
                i
                for i, mark in enumerate(marks)
                if not known[i] and starts[i] == start and (marks.index(mark) < i) == repeated
            ]
            first = [known[marks.index(marks[i])] for i in new] if repeated else []
            after = {job.id for job in (start, *first) if job and job.id}
            submitted = self._submit([runs[i] for i in new], after)
            for i, job in zip(new, submitted, strict=True):
                known[i] = job
        before.runs += [Progress(run) for run in runs]
        before.jobs += known

    def _submit(self, runs: list[Run], after: set[str]) -> list[_Job]:
        """One array of all runs, to start when the jobs `after` have ended."""
        if not runs:
            return []
        name = f"{re.sub(r'[^A-Za-z0-9_-]', '-', runs[0].study)}-{uuid.uuid4().hex[:8]}"
        folder = Path(runs[0].folder).parents[1] / runs[0].home / "jobs" / name
        submitted = [_Job(folder, i if len(runs) > 1 else None) for i in range(len(runs))]
        executor = submitit.SlurmExecutor(folder, _TIME_LIMITS, python=shlex.join(_PYTHON))
        words = self.settings.parameters(name, self.jobs, self.processes, after)
        executor.update_parameters(**words)
        # First the notes: whoever comes after a crash right here looks for jobs of that name.
        for run, job in zip(runs, submitted, strict=True):
            _write_note(run, job)
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it raises
                executor.submit_array(runs)
        except (FailedJobError, FailedSubmissionError) as error:
            for run in runs:
                (Path(run.folder) / _NOTE).unlink()
            shutil.rmtree(folder)
            raise UserError(f"sbatch refused: {_one_line(str(error))}") from error
        return submitted
