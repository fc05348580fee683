"""Runs that break on purpose: a study file whose rows train alike, each with a fault of its own."""

import io
import os
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import pytest

from experiments import commands, studies
from experiments.data import catalog
from experiments.jobs import runs
from experiments.recipe.words import parse_overrides
from tests.conftest import ROOT

TINY = [
    "train.max_iter=5", "train.log_period=1", "train.checkpoint_period=2", "train.amp=false",
    "dataloader.train.total_batch_size=2", "dataloader.train.micro_batch_size=2",
]  # fmt: skip

# Faults happen in the processes of runs: before a step, before evaluation, before the record.
_STUDY = '''
import itertools, os, shutil, signal, time
from pathlib import Path

import torch

from experiments.studies import Study, Variant

FAULTS = {faults}
WORDS = {words}
study = Study(
    name="faulty",
    question="What if?",
    words={{"model.backbone.propagation": "none"}},
    variants=tuple(Variant(name, words) for name, words in WORDS.items()),
)


def fill(folder, leave=0):
    """Leave that many bytes free where the folder lies."""
    free = os.statvfs(folder)
    free = free.f_bavail * free.f_frsize - leave
    (folder / "filler").write_bytes(bytes(free // 4096 * 4096))


def damage(file, how):
    file = Path(file)
    shutil.copy(file, f"{{file}}.whole")
    file.unlink() if how == "gone" else file.write_bytes(file.read_bytes()[:5000])


def before(module, name, when):
    """Call the fault of `when(...)` before each call of module.name(...)."""
    original = getattr(module, name)

    def call(*args, **words):
        moment, context = when(*args, **words)
        fault = FAULTS[variant].get(str(moment))
        if fault:
            exec(fault, dict(globals(), folder=folder, **context))
        return original(*args, **words)

    setattr(module, name, call)


if "SUBMITIT_EXECUTOR" in os.environ:
    from experiments import records
    from experiments.jobs import detection
    from experiments.training.training_loop import Trainer

    def known(cfg, run, macs):
        global folder, variant
        folder, variant = Path(run.folder), run.variant
        return "fit", {{}}

    before(detection, "fit_run", known)
    before(Trainer, "run_step", lambda trainer: (trainer.iter, dict(trainer=trainer)))
    before(detection, "evaluate", lambda *args: ("evaluate", dict(model=args[0])))
    before(records, "write", lambda *args: ("record", {{}}))
'''


@dataclass
class Faulty:
    """A study of rows with faults, by row and moment: an iteration, "fit" (training, or going on),
    "evaluate" or "record"."""

    root: Path
    small_set: dict[str, str]
    faults: dict[str, dict]
    overrides: list[str] = field(default_factory=list)
    options: list = field(default_factory=list)  # more of the command's
    words: dict[str, dict] = field(default_factory=dict)  # config keys, by row

    def __post_init__(self):
        self.root.mkdir(parents=True, exist_ok=True)
        self.file = self.root / f"faulty_{self.root.name.replace('-', '_')}.py"
        self.write(self.faults)

    def write(self, faults: dict[str, dict]) -> None:
        """Other faults of the same rows."""
        named = {name: {str(k): v for k, v in faults.get(name, {}).items()} for name in self.faults}
        # No gradient is so large: this changes a row's identity and nothing else.
        words = {
            name: {"train.clip_grad_norm": 1e6 + i, **self.words.get(name, {})}
            for i, name in enumerate(self.faults)
        }
        self.file.write_text(_STUDY.format(faults=repr(named), words=repr(words)))

    def command(self) -> list[str]:
        words = [
            "experiments", "run", self.file, "--seeds", 1, "--runs", self.root / "runs",
            "--dataset", self.small_set["dataset"], "--val", self.small_set["val"], *self.options,
            "--overrides", " ".join([*TINY, *self.overrides]),
        ]  # fmt: skip
        return [sys.executable, "-W", "ignore", "-m", *map(str, words)]

    def call(self, **env) -> subprocess.CompletedProcess:
        return subprocess.run(
            self.command(), cwd=ROOT, capture_output=True, text=True, check=False,
            env=os.environ | env, timeout=1800,
        )  # fmt: skip

    def folders(self) -> dict[str, Path]:
        """Of each row's run, before it is there, too."""
        data = catalog.prepare("mini", self.small_set["dataset"], self.small_set["val"])
        found = studies.find(str(self.file))
        rows = runs.rows(found, "mini", "", parse_overrides(" ".join([*TINY, *self.overrides])))
        planned = runs.plan(found, str(self.file), "mini", rows, 1, data, self.root / "runs")
        return {run.variant: Path(run.folder) for run in planned}


def mend(root: Path) -> None:
    """What a fault's `damage` was done to."""
    for whole in root.rglob("*.whole"):
        whole.rename(whole.with_suffix(""))


def mount(folder: Path, megabytes: float, undo: list) -> None:
    """A small file system of its own in a folder; skips the test without the right to do so."""
    folder.mkdir(parents=True, exist_ok=True)
    size = f"size={int(megabytes * 1024)}k"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {done.stderr.decode().strip()}")
    undo.append(folder)


def unmount(folder: Path) -> bool:
    """The last that was mounted there; False if nothing is."""
    done = subprocess.run(["umount", str(folder)], capture_output=True, check=False)
    return done.returncode == 0


def call_here(main, *words) -> tuple[int, str]:
    """A command in this process: exit code and output.

    Args:
        main: `experiments.__main__` or `analysis.__main__`.
    """
    output = io.StringIO()
    with mock.patch.object(sys, "argv", ["", *map(str, words)]), redirect_stdout(output):
        code = commands.run(main.app, main.console)
    return code, output.getvalue()


def error_of(variant: str, output: str) -> str:
    """The line that the command ends with for a run that failed."""
    start = f"{variant} seed 0 failed: "
    (line,) = [line for line in output.splitlines() if line.startswith(start)]
    return line.removeprefix(start)
