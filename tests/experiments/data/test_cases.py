"""Sets that public reports tell of, through the commands: their plain twin's figures, or a line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT, study_folder

pytestmark = pytest.mark.slow  # a run each

CASES = ROOT.parent / "shared" / "cases" / "cases.py"
TINY = [
    "train.max_iter=2", "dataloader.train.total_batch_size=4",
    "dataloader.train.micro_batch_size=4", "dataloader.train.num_workers=0",
]  # fmt: skip
# All others train as the plain set does, to the bit.
ANOTHER_TRAINING = {"boxes_only_missing"}


def command(*words) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"COLUMNS": "400"},
    )  # fmt: skip


def outcome(root: Path, runs: Path):
    """The weights and the record that a run on a set leaves, or its error; the score's table."""
    sets = {
        "dataset": f"{root / 'train.json'},{root / 'images'}",
        "val": f"{root / 'val.json'},{root / 'images'}",
    }
    done = command(
        "experiments", "run", "global-vs-conv", "--variants", "none", "--seeds", 1, "--runs", runs,
        "--dataset", sets["dataset"], "--val", sets["val"], "--overrides", " ".join(TINY),
    )  # fmt: skip
    assert "Traceback" not in done.stdout + done.stderr, root.name
    if done.returncode:
        assert done.returncode == 2, root.name + done.stdout
        assert not list(runs.rglob("*.pth")), root.name
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
        return line, None, None
    (folder,) = (f.parent for f in study_folder(runs, "global-vs-conv", sets).glob("*/record.json"))
    record = json.loads((folder / "record.json").read_text())
    weights = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    return None, (weights, record["box"]), score(root)


def score(root: Path) -> str:
    """What the command prints of perfect detections, but for notes on what was mended."""
    done = command("analysis", "score", root / "val.json", root / "perfect.json")
    assert done.returncode == 0, root.name + done.stdout + done.stderr
    return "".join(line for line in done.stdout.splitlines(True) if not line.startswith("note: "))


def test_every_case_is_its_plain_twin_or_one_line(tmp_path):
    if not CASES.is_file():
        pytest.skip("no ../shared/cases/cases.py")
    root = tmp_path / "cases"
    subprocess.run([sys.executable, CASES, root], check=True, capture_output=True)
    names = sorted(path.name for path in root.iterdir())
    assert len(names) >= 12
    _, trained, scored = outcome(root / "plain", tmp_path / "runs-plain")
    refused = set()
    for name in names:
        error, found, table = outcome(root / name, tmp_path / f"runs-{name}")
        if error:
            refused.add(name)
            assert str(root / name) in error
            continue
        assert table == scored, name
        if name not in ANOTHER_TRAINING:
            torch.testing.assert_close(found, trained, rtol=0, atol=0, msg=name)
    assert len(names) - len(refused) >= 7, refused
