"""What a cluster wants to be told: slurm.toml."""

import dataclasses
import datetime
import os
import re
import shutil
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError, unknown

_WARNING_S = 120  # before the time limit, for finishing a step and writing a checkpoint
FILE, VARIABLE = "slurm.toml", "ABLATIONS_SLURM"
_COMMANDS = ("sbatch", "srun", "squeue", "scontrol")
# Options of sbatch that are not the user's alone.
_OURS = ("array", "error", "job-name", "nodes", "ntasks", "ntasks-per-node", "output", "time")
_KINDS = {
    int: "a whole number",
    str: "a word in quotes",
    int | str: 'minutes, or a time in quotes: "24:00:00"',
    list: "a list of shell lines in quotes",
    dict: "options of sbatch",
}


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

    def parameters(self, name: str, jobs: int, processes: int, after: set[str]) -> dict[str, Any]:
        """As submitit wants them, for an array of that name which starts when others have ended.

        Args:
            jobs: that run at a time; 0: as the settings say.
            processes: of one run.
        """
        nodes, tasks = self.layout(processes)
        words = ("partition", "account", "qos", "constraint", "cpus_per_task")
        parameters = {word: getattr(self, word) or None for word in words}

        # Of a node, as the settings are: a run on a part of one asks for that part.
        def part(of_node: re.Match) -> str:
            return str(-(-int(of_node[0]) * tasks // self.per_node))

        for word in ("gres", "mem"):
            parameters[word] = re.sub(r"\d+(?=[KMGT]?$)", part, getattr(self, word)) or None
        gpus = min(tasks, self.gpus_per_node)
        srun = ["--kill-on-bad-exit=1"]  # else the other processes of a run wait for one that died
        if self.cpus_per_task:
            srun.append(f"--cpus-per-task={self.cpus_per_task}")  # Slurm 22.05: no longer inherited
        return parameters | dict(
            job_name=name,
            time=self.minutes,
            nodes=nodes,
            ntasks_per_node=tasks,
            gpus_per_node=gpus or None,
            setup=self.setup or None,
            array_parallelism=jobs or self.max_jobs or 10_000,
            signal_delay_s=min(_WARNING_S, self.minutes * 60 // 4),
            dependency=":".join(["afterany", *sorted(after)]) if after else None,
            stderr_to_stdout=True,
            srun_args=srun,
            wckey=None,
            additional_parameters={"requeue": True, **self.sbatch},
        )


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
