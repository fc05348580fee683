"""What launchers have in common: runs get their processes, and are followed to their end."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

from rich.console import Console

from ..jobs.planned import Stages
from . import view
from .view import Launch


class Launcher(ABC):
    """Gives runs their processes.

    Args:
        jobs: that run side by side; 0: as many as there is room for.
        processes: of each run, each with a GPU of its own if there are any.
    """

    here = True  # whether runs are on this machine

    def __init__(self, jobs: int, processes: int):
        self.jobs, self.processes = jobs, processes

    def launch(self, plan: Iterable[Stages], console: Console) -> int:
        """Run what the plan says; it is asked for more when that has been run.

        Returns:
            Exit code: 0; 1: a run failed; 130: stopped.
        """
        try:
            for stages in plan:
                for launch in self.start(stages):
                    if code := _follow(launch, console):
                        return code
        except KeyboardInterrupt:  # between two rounds
            console.print("stopped: the same command goes on")
            return 130
        return 0

    @abstractmethod
    def start(self, stages: Stages) -> Iterator[Launch]:
        """Start the runs; what is given is to be followed before the next is asked for."""


def _follow(launch: Launch, console: Console) -> int:
    """Show how far runs are until they have ended; returns as `Launcher.launch`."""
    try:
        view.follow(launch, console)
    except KeyboardInterrupt:
        console.print(launch.stop(), highlight=False)
        return 130
    failed = [p for p in launch.runs if p.state != "done"]
    for progress in failed:
        name = f"{progress.run.variant} seed {progress.run.seed}"
        console.print(f"{name} failed: {progress.error}\n  log: {progress.log}", highlight=False)
    return int(bool(failed))
