"""A tiny study through the real command, in a session of its own, to be disturbed from outside."""

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.conftest import ROOT

ITERATIONS = 24
# One checkpoint each iteration; two micro batches a step, for one process or two.
TINY = {
    "train.max_iter": ITERATIONS,
    "train.log_period": 1,
    "train.checkpoint_period": 1,
    "train.amp": "false",
    "train.threads": 1,
    "schedule.warmup_iters": 1,
    "dataloader.train.total_batch_size": 2,
    "dataloader.train.micro_batch_size": 1,
    "dataloader.train.num_workers": 1,
    "dataloader.test.batch_size": 1,
}


@dataclass
class Study:
    """One run of one row. `gpus` is of the next start, and may change between two."""

    sets: dict[str, str]
    runs: Path
    gpus: int = 1
    study: str = "global-vs-conv"
    variant: str = "none"
    words: dict = None  # config keys beside TINY

    @property
    def command(self) -> list[str]:
        overrides = {**TINY, **(self.words or {})}
        words = [
            "experiments", "run", self.study, "--seeds", "1", "--variants", self.variant,
            "--runs", str(self.runs), "--dataset", self.sets["dataset"], "--val", self.sets["val"],
            "--overrides", " ".join(f"{key}={value}" for key, value in overrides.items()),
        ]  # fmt: skip
        return words if self.gpus == 1 else [*words, "--gpus", str(self.gpus)]

    @property
    def run(self) -> Path:
        """The run's folder; there may be nothing yet."""
        found = [f.parent for f in self.runs.glob(f"mini/*/{self.variant}-*/log.txt")]
        return found[0] if found else self.runs / "nothing yet"

    @property
    def log(self) -> str:
        return read(self.run / "log.txt")

    @property
    def output(self) -> str:
        return read(self.runs / "output.txt")

    @property
    def curve(self) -> list[dict]:
        """The lines of training in metrics.json."""
        lines = [json.loads(line) for line in read(self.run / "metrics.json").splitlines()]
        return [line for line in lines if "iteration" in line]

    @property
    def iterations(self) -> int:
        """Lines of training written, those of iterations done again too."""
        return read(self.run / "metrics.json").count('"total_loss"')

    @property
    def detected(self) -> int:
        """Images done of an evaluation under way."""
        files = (self.run / "detections").glob("*.jsonl")
        return sum(read(file).count("\n") for file in files)

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return torch.load(self.run / "model_final.pth", weights_only=True)["model"]

    @property
    def figures(self) -> dict:
        record = json.loads(read(self.run / "record.json"))
        return dict(box=record["box"], mask=record["mask"])

    def start(self, *before: str) -> subprocess.Popen:
        """The command, with other words than "-m" before it if given."""
        self.runs.mkdir(exist_ok=True, parents=True)
        with open(self.runs / "output.txt", "w") as file:
            return subprocess.Popen(
                [sys.executable, "-W", "ignore", *before, "-m", *self.command],
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def finish(self, *before: str) -> "Study":
        process = self.start(*before)
        assert process.wait(300) == 0, self.output
        return self


def read(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def wait_for(
    condition: Callable[[], bool], process: subprocess.Popen | None = None, seconds: float = 300
) -> None:
    """Until it holds; an error if the process ends before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, "ended before it could be disturbed"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def alive(session: int) -> dict[int, dict[str, str]]:
    """The environment of each process of a session, and its parent as "PPID"; by process id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "stat").read_text().rpartition(")")[2].split()
            state, parent, _, own = words[:4]
            if int(own) != session or state == "Z":
                continue
            lines = (folder / "environ").read_text().split("\0")
        except OSError:  # has ended meanwhile
            continue
        found[int(folder.name)] = dict(line.partition("=")[::2] for line in lines) | {
            "PPID": parent
        }
    return found


def ranks(session: int) -> dict[int, int]:
    """Process ids of a run that submitit started, by rank."""
    processes = alive(session)
    return {
        int(env["SUBMITIT_LOCAL_GLOBALID"]): pid
        for pid, env in processes.items()
        if "SUBMITIT_LOCAL_GLOBALID" in env
        # Workers of a data loader are copies of their parent.
        and "SUBMITIT_LOCAL_GLOBALID" not in processes.get(int(env["PPID"]), {})
    }


def children(process: int) -> list[int]:
    """Of torchrun: its workers, which may have sessions of their own."""
    found = subprocess.run(
        ["pgrep", "-P", str(process)], stdout=subprocess.PIPE, text=True, check=True
    )
    return [int(line) for line in found.stdout.split()]


def gone(session: int) -> Callable[[], bool]:
    return lambda: not alive(session)


def kill_session(process: subprocess.Popen) -> None:
    """SIGKILL to all its processes at once."""
    os.killpg(process.pid, 9)
    process.wait()
    wait_for(gone(process.pid), seconds=30)


def assert_same(study: Study, undisturbed: Study) -> None:
    """Bit-identical weights, the same AP, and a curve without gaps."""
    torch.testing.assert_close(study.weights, undisturbed.weights, rtol=0, atol=0)
    assert study.figures == undisturbed.figures
    assert "broken" not in study.log
    seen = [line["iteration"] for line in study.curve]
    assert seen[0] == 0
    assert seen[-1] == len(set(seen)) - 1 == undisturbed.curve[-1]["iteration"]
    # At most the iteration after the last checkpoint was done again.
    assert all(after in (before, before + 1) for before, after in itertools.pairwise(seen))
