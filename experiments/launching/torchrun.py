"""Processes that torchrun starts: of a command that it was called with, or that calls it."""

import itertools
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console

from ..jobs.planned import Stages
from ..training import distributed
from .launcher import Launcher
from .view import Launch


class Torchrun(Launcher):
    """One run after the other in this process and those that torchrun started with it."""

    def launch(self, plan: Iterable[Stages], console: Console) -> int:
        return super().launch(_of_all(plan), console)

    def start(self, stages: Stages) -> Iterator[Launch]:
        for run in itertools.chain(*stages):
            run()
        return iter(())


def _of_all(plan: Iterable[Stages]) -> Iterator[Stages]:
    """What process 0 plans, in each of one group."""
    plan = iter(plan)
    # One group for all: leaving it and joining again in the same processes fails.
    with distributed.process_group():
        while (stages := distributed.of_main(lambda: next(plan, None))) is not None:
            yield stages


def in_processes(count: int, words: Sequence[str]) -> int:
    """Run `python` with these words in as many processes of one group on this machine, by torchrun.

    Returns:
        The exit code: that of the process that failed first, 130 if they were told to stop.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // count)))
    options = ["--standalone", "--nproc-per-node", str(count), "--no-python", sys.executable]
    try:
        torchrun.run(torchrun.parse_args([*options, *words]))
    except ChildFailedError as error:
        return error.get_first_failure()[1].exitcode
    except SignalException:
        return 130
    return 0
