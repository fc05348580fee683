"""Runs in processes of their own: on this machine or on a cluster, with one live view."""

from ..errors import unknown
from ..training import distributed
from . import local, settings, slurm, torchrun
from .launcher import Launcher


def launcher(word: str, jobs: int, gpus: int) -> Launcher:
    """What gives runs their processes: those that torchrun started, or what the word says.

    Args:
        jobs: that run side by side; 0: as many as there is room for.
        gpus: of each run, or processes.

    Raises:
        UserError: no such launcher, or as of `settings.settings_for`.
    """
    if word not in ("local", "slurm"):
        raise unknown("launcher", word, ("local", "slurm"))
    cluster = settings.settings_for(gpus) if word == "slurm" else None
    if count := distributed.started_by_torchrun():
        return torchrun.Torchrun(jobs, count)
    return slurm.Slurm(jobs, gpus, cluster) if cluster else local.Local(jobs, gpus)
