"""A real Slurm of two nodes on this machine, in a folder of its own.

`python -m tests.slurm.cluster` starts it and says how to use it. munged, slurmctld and two slurmd
run as children of that process until its stdin ends or it is told to stop; then every process and
file of theirs is gone, jobs too. A Slurm or munge that the machine has already is left alone: key,
socket and ports are others. There is no slurmdbd, as on clusters without accounting. Needs root,
and Debian's packages slurm-wlm and munge.

The first node has the machine's own name: processes of a run find each other by the name of their
first node, and so /etc/hosts stays as it is.
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
_START_S = 60.0  # until all nodes answer
_PR_SET_CHILD_SUBREAPER = 36  # of linux/prctl.h

_SLURM_CONF = """\
ClusterName=ablations
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=15
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=5,bf_interval=5
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MailProg=/bin/true
MpiDefault=none
ReturnToService=2
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 Port={ports[0]} CPUs=1 State=UNKNOWN
NodeName={host}-b NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""


def missing() -> str:
    """Why there can be no cluster here; "" if there can."""
    if os.geteuid() != 0:
        return "a private Slurm needs root"
    lacking = [command for command in _COMMANDS if not shutil.which(command)]
    if lacking:
        return f"no {', '.join(lacking)}: apt-get install --no-install-recommends slurm-wlm munge"
    return ""


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


@contextlib.contextmanager
def _cluster() -> Iterator[Path]:
    """The cluster's slurm.conf, which commands find by $SLURM_CONF, while it runs.

    Raises:
        RuntimeError: a daemon ended, or the nodes do not answer in time.
    """
    # What daemons leave behind, jobs for one, becomes this process's: so all of it is found.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    daemons: list[subprocess.Popen] = []
    try:
        yield _start(folder, daemons)
    finally:
        _stop(daemons)
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path, daemons: list[subprocess.Popen]) -> Path:
    folder.chmod(0o755)  # munged wants its socket where everyone can reach it
    for name in ("munge", "state"):
        (folder / name).mkdir(mode=0o755)
    host = socket.gethostname().partition(".")[0]
    controller_port, *ports = _free_ports(3)
    conf = folder / "slurm.conf"
    conf.write_text(
        _SLURM_CONF.format(folder=folder, host=host, controller_port=controller_port, ports=ports)
    )
    key = folder / "munge" / "key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    environment = os.environ | {"SLURM_CONF": str(conf)}

    def daemon(*words: str) -> None:
        with open(folder / f"{words[0]}.out", "a") as output:
            daemons.append(
                subprocess.Popen(
                    words,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # Ctrl-C in the terminal is not for them
                )
            )

    files = {name: folder / "munge" / name for name in ("socket", "log-file", "pid-file")}
    options = [f"--{name}={path}" for name, path in files.items()]
    seed = f"--seed-file={folder}/munge/seed"
    daemon("munged", "--foreground", f"--key-file={key}", seed, *options)
    _wait(folder, daemons, files["socket"].exists, "munged")
    daemon("slurmctld", "-D")
    for node in (host, f"{host}-b"):
        daemon("slurmd", "-D", "-N", node)

    def idle() -> bool:
        words = ["sinfo", "--noheader", "--Node", "--partition=low", "--format=%T"]
        states = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        return states.stdout.split() == ["idle", "idle"]

    _wait(folder, daemons, idle, "Slurm")
    return conf


def _wait(folder: Path, daemons: list[subprocess.Popen], ready, what: str) -> None:
    deadline = time.monotonic() + _START_S
    while not ready():
        ended = [d.args[0] for d in daemons if d.poll() is not None]
        if ended or time.monotonic() > deadline:
            logs = [*folder.glob("*.out"), *folder.glob("*.log"), folder / "munge" / "log-file"]
            lines = [line for log in logs if log.is_file() for line in log.read_text().splitlines()]
            raise RuntimeError("\n".join([f"{what} does not start; ended: {ended}", *lines[-40:]]))
        time.sleep(0.1)


def _stop(daemons: list[subprocess.Popen]) -> None:
    for process in reversed(daemons):
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
    # Jobs, and what slurmd starts for them, outlive it.
    while left := _descendants():
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.05)


def _descendants() -> set[int]:
    """Processes that this one started, and those that they did."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name, which may hold anything, ends at the last bracket; state and parent follow.
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found: set[int] = set()
    new = {os.getpid()}
    while new := {pid for pid, parent in parents.items() if parent in new}:
        found |= new
    return found


def main() -> None:
    """Run a cluster until stdin ends, Ctrl-C or SIGTERM; says how to use it."""
    if why := missing():
        sys.exit(why)
    # A background job of a shell starts with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), _cluster() as conf:
        print(f"export SLURM_CONF={conf}", flush=True)
        while True:
            select.select([sys.stdin], [], [])
            if not os.read(sys.stdin.fileno(), 4096):
                break


if __name__ == "__main__":
    main()
