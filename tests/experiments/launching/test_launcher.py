"""Which launcher a command gets, and what it does with a plan."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from rich.console import Console

from experiments.errors import UserError
from experiments.launching import launcher, torchrun
from experiments.launching.launcher import Launcher
from experiments.launching.local import Local
from experiments.launching.view import Progress


def test_torchrun_goes_before_the_word(monkeypatch):
    assert isinstance(launcher("local", 0, 2), Local)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    monkeypatch.setenv("WORLD_SIZE", "4")
    found = launcher("local", 0, 1)
    assert isinstance(found, torchrun.Torchrun)
    assert found.processes == 4
    with pytest.raises(UserError, match="unknown launcher 'slrum': did you mean 'slurm'"):
        launcher("slrum", 0, 1)


@dataclass
class Ended:
    runs: list[Progress]
    finished: bool = True

    def stop(self) -> str:
        return "stopped as it ended"


class Told(Launcher):
    """Notes what it is to run; "bad" fails, "slow" is interrupted."""

    def __init__(self):
        super().__init__(1, 1)
        self.told = []

    def start(self, stages):
        for runs in stages:
            self.told.append(runs)
            states = ["failed" if name == "bad" else "done" for name in runs]
            runs = [SimpleNamespace(variant=name, seed=0, done=True) for name in runs]
            if runs[0].variant == "slow":
                raise KeyboardInterrupt
            yield Ended([Progress(r, s, "why") for r, s in zip(runs, states, strict=True)])


@pytest.mark.parametrize(
    ("rounds", "code", "told", "printed"),
    [
        ([[["a"], ["b", "c"]], [], [["d"]]], 0, [["a"], ["b", "c"], ["d"]], ""),
        # What comes behind one that failed is not begun, and nothing more is planned.
        ([[["a", "bad"], ["b"]], [["c"]]], 1, [["a", "bad"]], "bad seed 0 failed: why"),
        ([[["a"]], [["slow"]], [["c"]]], 130, [["a"], ["slow"]], "the same command goes on"),
    ],
)
def test_a_plan_is_asked_for_more_when_that_has_been_run(rounds, code, told, printed):
    by, console = Told(), Console(record=True, width=200)
    asked = []

    def plan():
        for stages in rounds:
            asked.append(len(by.told))
            yield stages

    assert by.launch(plan(), console) == code
    assert by.told == told
    assert len(asked) == (3 if code == 0 else len(told))
    assert printed in console.export_text()
