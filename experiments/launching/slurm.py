"""Runs as jobs of a Slurm cluster: one array for all, followed by `squeue`, requeued and resumed.

submitit submits the jobs and requeues them at a time limit or when they are preempted. Whoever
calls the same command again follows jobs that are waiting or running, instead of submitting them
twice: each run's folder notes its job before that is submitted. What became of a job that ended is
read from what it left (record, result, log), because clusters without accounting do not know.
"""

import contextlib
import dataclasses
import datetime
import io
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError, JobPaths

from ..errors import UserError, unknown
from ..jobs import pretraining_runs
from ..jobs.runs import Run
from ..json_files import write_json
from ..recipe import config
from ..records import VERSION, read_json
from .local import Progress, first_error

FILE, VARIABLE = "slurm.toml", "ABLATIONS_SLURM"
_COMMANDS = ("sbatch", "srun", "squeue", "scontrol")
_NOTE = "slurm.json"  # in a run's folder: which job of which array
_EVERY_S = 5.0  # between calls of squeue
_PATIENCE_S = 30.0  # for an answer of squeue
_TIME_LIMITS = 1000  # how often a job may reach its time limit
_WARNING_S = 120  # before the time limit, for finishing a step and writing a checkpoint
# Of squeue; others are of jobs that go on, or will.
_ENDED = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "REVOKED", "TIMEOUT",
)  # fmt: skip
# Options of sbatch that are not the user's alone.
_OURS = ("array", "error", "job-name", "nodes", "ntasks", "ntasks-per-node", "output", "time")
_KINDS = {
    int: "a whole number",
    str: "a word in quotes",
    int | str: 'minutes, or a time in quotes: "24:00:00"',
    list: "a list of shell lines in quotes",
    dict: "options of sbatch",
}
# A signal to checkpoint that comes before Python listens to it would end the process.
_PYTHON = ["bash", "-c", 'trap "" USR2; exec "$0" "$@"', sys.executable]


@dataclass(frozen=True)
class Settings:
    """What a cluster wants to be told: the keys of slurm.toml, in sbatch's words."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    gres: str = ""  # where a cluster does not know gpus_per_node
    mem: str = ""  # of a node, e.g. "64G"; a run on a part of one asks for as large a part of it
    time: int | str = "24:00:00"  # minutes, or as sbatch reads it; a run goes on in the next job
    gpus_per_node: int = 0
    ntasks_per_node: int = 0  # processes of a run on one node; 0: one per GPU
    max_nodes: int = 0  # of one run; 0: any
    cpus_per_task: int = 0  # of one process; 0: the cluster's default
    max_jobs: int = 0  # that run at a time; 0: any
    setup: list = field(default_factory=list)  # shell lines before a run, e.g. "module load cuda"
    sbatch: dict = field(default_factory=dict)  # any other option, by its long name

    @property
    def minutes(self) -> int:
        """The time limit."""
        return self.time if isinstance(self.time, int) else _minutes(self.time)

    @property
    def per_node(self) -> int:
        """Processes that fill a node."""
        return self.ntasks_per_node or self.gpus_per_node or 1

    def layout(self, processes: int) -> tuple[int, int]:
        """Nodes, and processes on each, of a run over that many processes.

        Raises:
            UserError: they do not fill their nodes, or are too many.
        """
        per_node = self.per_node
        if processes <= per_node:
            return 1, processes
        nodes, rest = divmod(processes, per_node)
        if rest:
            raise UserError(
                f"GPUS={processes} do not fill nodes of {per_node} (ntasks_per_node or "
                f"gpus_per_node in {FILE}): give a multiple of {per_node}, or up to {per_node}"
            )
        if self.max_nodes and nodes > self.max_nodes:
            raise UserError(
                f"GPUS={processes} take {nodes} nodes of {per_node}, max_nodes in {FILE} is "
                f"{self.max_nodes}: give GPUS={self.max_nodes * per_node} at most"
            )
        return nodes, per_node


def _minutes(text: str) -> int:
    """sbatch's time limit, "[days-]hours:minutes:seconds" and shorter, in whole minutes.

    Raises:
        ValueError: not of that form, or less than a minute.
    """
    days, dash, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if len(parts) > 3:
        raise ValueError(text)
    # Without days, two parts are minutes and seconds, and one is minutes.
    parts = [0] * (0 if dash or len(parts) == 3 else 1) + parts
    hours, minutes, seconds = [*parts, 0, 0][:3]
    limit = datetime.timedelta(
        int(days) if dash else 0, hours=hours, minutes=minutes, seconds=seconds
    )
    whole = -(-limit // datetime.timedelta(minutes=1))
    if whole < 1:
        raise ValueError(text)
    return whole


def settings_for(processes: int) -> Settings:
    """What `launch` needs.

    Args:
        processes: of one run.

    Raises:
        UserError: no Slurm here, or as of `read_settings` and `Settings.layout`.
    """
    lacking = [command for command in _COMMANDS if not shutil.which(command)]
    if lacking:
        raise UserError(f"LAUNCHER=slurm needs {', '.join(lacking)} here: use a node of a cluster")
    settings = read_settings()
    settings.layout(processes)
    return settings


def read_settings() -> Settings:
    """The file that $ABLATIONS_SLURM names, or slurm.toml in this folder; without it, defaults.

    Raises:
        UserError: it cannot be read, or has a key that is unknown or of another type.
    """
    named = os.environ.get(VARIABLE, "")
    path = Path(named or FILE)
    if not named and not path.exists():
        return Settings()
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {path}: {why}. docs/cluster.md has an example") from error
    types = {f.name: f.type for f in dataclasses.fields(Settings)}
    for key, value in content.items():
        if key not in types:
            raise unknown("key", key, types, f" in {path} (other options of sbatch go to [sbatch])")
        if not isinstance(value, types[key]) or isinstance(value, bool):
            raise UserError(f"{key} in {path} is {value!r}: it takes {_KINDS[types[key]]}")
        if isinstance(value, int) and value < 0:
            raise UserError(f"{key} in {path} is {value}: it takes no negative number")
    for line in content.get("setup", ()):
        if not isinstance(line, str):
            raise UserError(f"setup in {path} has {line!r}: it takes shell lines in quotes")
    for option, value in content.get("sbatch", {}).items():
        if option.replace("_", "-") in _OURS:
            raise UserError(
                f"{option} of [sbatch] in {path} is not for there: "
                "GPUS=, the study, or a key above [sbatch] set it"
            )
        if not isinstance(value, (str, int, float)) or value is False:
            raise UserError(f"{option} of [sbatch] in {path} is {value!r}: it takes a word or true")
    settings = Settings(**content)
    if "gpu" in settings.gres and not settings.ntasks_per_node:
        raise UserError(
            f"gres in {path} is {settings.gres!r}: give ntasks_per_node too, the GPUs of a node"
        )
    try:
        limit = settings.minutes
    except ValueError:
        limit = 0
    if limit < 1:
        raise UserError(
            f"time in {path} is {settings.time!r}: it takes minutes, or "
            '"[days-]hours:minutes:seconds"'
        )
    return settings


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
class Launch:
    """The runs of one command as jobs of a cluster; as `experiments.launching.local.Launch`."""

    runs: list[Progress]
    jobs: list[_Job]
    _looked: float = float("-inf")  # time.monotonic() of the last look
    _gone: set[_Job] = field(default_factory=set)  # ended without a record, as it looked then

    @property
    def finished(self) -> bool:
        """Whether no run is waiting or running any more; asks Slurm now and then."""
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


def launch(
    runs: list[Run],
    jobs: int,
    processes: int,
    settings: Settings,
    execute: Callable[[Run], str],
    before: Launch | None = None,
) -> Launch:
    """Submit the runs, but those whose jobs wait or run already.

    Args:
        jobs: that run at a time; 0: as the settings say.
        processes: of one run.
        execute: what a job calls with its run.
        before: pre-trainings that were submitted; runs that start from one come after its job,
            whether somebody follows them here or not.

    Returns:
        Those before, and the runs.

    Raises:
        UserError: Slurm refuses, with its own words; none of these runs is submitted then.
    """
    before = before or Launch([], [])
    pretrained = {
        pretraining_runs.word_of(progress.run): job
        for progress, job in zip(before.runs, before.jobs, strict=True)
    }
    starts = [pretrained.get(run.cfg.train.init_weights) for run in runs]
    nodes, tasks = settings.layout(processes)
    noted = [_noted_job(run) for run in runs]
    queue = _queue([job for job in noted if job])
    known = [job if job and queue.get(job, _ENDED)[0] not in _ENDED else None for job in noted]
    # A run that differs from another at test time only takes that one's weights: it comes after.
    marks = [config.training_fingerprint(run.cfg, run.data.digest) for run in runs]
    for repeated, start in itertools.product((False, True), dict.fromkeys(starts)):
        new = [
            i
            for i, mark in enumerate(marks)
            if not known[i] and starts[i] == start and (marks.index(mark) < i) == repeated
        ]
        first = [known[marks.index(marks[i])] for i in new] if repeated else []
        after = {job.id for job in (start, *first) if job and job.id}
        submitted = _submit([runs[i] for i in new], jobs, nodes, tasks, settings, execute, after)
        for i, job in zip(new, submitted, strict=True):
            known[i] = job
    progress = [*before.runs, *(Progress(run) for run in runs)]
    return Launch(progress, [*before.jobs, *known])


def _submit(
    runs: list[Run],
    jobs: int,
    nodes: int,
    tasks: int,
    settings: Settings,
    execute: Callable[[Run], str],
    after: set[str],
) -> list[_Job]:
    """One array of all runs, to start when the jobs `after` have ended."""
    if not runs:
        return []
    name = f"{re.sub(r'[^A-Za-z0-9_-]', '-', runs[0].study)}-{uuid.uuid4().hex[:8]}"
    folder = Path(runs[0].folder).parents[1] / runs[0].home / "jobs" / name
    submitted = [_Job(folder, i if len(runs) > 1 else None) for i in range(len(runs))]
    executor = submitit.SlurmExecutor(folder, _TIME_LIMITS, python=shlex.join(_PYTHON))
    executor.update_parameters(**_parameters(settings, name, jobs, nodes, tasks, after))
    # First the notes: whoever comes after a crash right here looks for jobs of that name.
    for run, job in zip(runs, submitted, strict=True):
        _write_note(run, job)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it raises
            executor.map_array(execute, runs)
    except (FailedJobError, FailedSubmissionError) as error:
        for run in runs:
            (Path(run.folder) / _NOTE).unlink()
        shutil.rmtree(folder)
        raise UserError(f"sbatch refused: {_one_line(str(error))}") from error
    return submitted


def _parameters(
    settings: Settings, name: str, jobs: int, nodes: int, tasks: int, after: set[str]
) -> dict[str, Any]:
    """As submitit wants them."""
    words = ("partition", "account", "qos", "constraint", "cpus_per_task")
    parameters = {word: getattr(settings, word) or None for word in words}

    # Of a node, as the settings are: a run on a part of one asks for that part.
    def part(of_node: re.Match) -> str:
        return str(-(-int(of_node[0]) * tasks // settings.per_node))

    for word in ("gres", "mem"):
        parameters[word] = re.sub(r"\d+(?=[KMGT]?$)", part, getattr(settings, word)) or None
    gpus = min(tasks, settings.gpus_per_node)
    srun = ["--kill-on-bad-exit=1"]  # else the other processes of a run wait for one that died
    if settings.cpus_per_task:
        srun.append(f"--cpus-per-task={settings.cpus_per_task}")  # Slurm 22.05: no longer inherited
    return parameters | dict(
        job_name=name,
        time=settings.minutes,
        nodes=nodes,
        ntasks_per_node=tasks,
        gpus_per_node=gpus or None,
        setup=settings.setup or None,
        array_parallelism=jobs or settings.max_jobs or 10_000,
        signal_delay_s=min(_WARNING_S, settings.minutes * 60 // 4),
        dependency=":".join(["afterany", *sorted(after)]) if after else None,
        stderr_to_stdout=True,
        srun_args=srun,
        wckey=None,
        additional_parameters={"requeue": True, **settings.sbatch},
    )
