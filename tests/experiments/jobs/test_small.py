"""Small scale end to end on real COCO images, with tiny settings: share, plan, two rows of two
seeds, stopped and gone on with, table, validity, report."""

import os
import subprocess
import sys
import time

import pandas as pd
import pytest

from experiments import records
from tests.conftest import ROOT

SHARES = "dataloader.train.share=0.6 dataloader.test.share=0.8"
TINY = (
    f"{SHARES} dataloader.image_size=128 model.backbone.img_size=128 train.init_weights=none "
    "model.proposal_generator.post_nms_topk=[50,50] dataloader.train.total_batch_size=2 "
    "dataloader.train.num_workers=0 dataloader.test.num_workers=0 train.max_iter=4 "
    "train.log_period=1 train.checkpoint_period=1 train.threads=1"
)


@pytest.fixture
def command(coco, tmp_path):
    """Starts a command of this suite on real images, in a folder of its own."""

    def start(*words) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", *map(str, words)],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"DETECTRON2_DATASETS": str(coco), "PYTHONPATH": str(ROOT)},
        )

    return start


def done(process: subprocess.Popen, code: int = 0) -> str:
    printed, _ = process.communicate(timeout=900)
    assert process.returncode == code, printed
    return printed


@pytest.mark.slow
def test_from_a_share_to_the_report(command, tmp_path):
    printed = done(command("experiments", "data", "small", "--overrides", SHARES))
    assert "a share of 0.6 of 92 images, seed 0; sha256 of its image ids: " in printed
    printed = done(
        command("experiments", "plan", "global-vs-conv", "--scale", "small", "--variants", "none")
    )
    assert "BUDGET=24h buys" in printed

    words = ["experiments", "run", "global-vs-conv", "--scale", "small", "--seeds", 2, "--jobs", 1]
    words += ["--variants", "none,shifted", "--overrides", TINY]
    first = command(*words)
    end = time.monotonic() + 600
    while not (found := list(tmp_path.glob("runs/small/*/*/record.json"))):
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.2)
    first.terminate()
    assert "stopped" in done(first, 130)
    finished = {path: path.stat().st_mtime_ns for path in found}
    printed = done(command(*words))
    assert f"4 runs, {len(finished)} of them done" in printed
    assert all(path.stat().st_mtime_ns == at for path, at in finished.items())
    assert "4 runs, 4 of them done" in done(command(*words))
    frame = records.load(tmp_path / "runs")
    assert sorted(zip(frame.variant, frame.seed, strict=True)) == [
        ("none", 0), ("none", 1), ("shifted", 0), ("shifted", 1),
    ]  # fmt: skip
    assert {tuple(data["images"]) for data in frame["data"]} == {(55, 53)}
    assert frame["data"].map(lambda data: data["digest"]).nunique() == 1

    folder = tmp_path / "runs" / "small" / "global-vs-conv"
    done(command("analysis", "study", folder))
    table = pd.read_csv(folder / "table.csv").set_index("variant")
    assert list(table["seeds"]) == [2, 2]
    assert (
        "on COCO val2017, whole recipe: compare the order only:"
        in (folder / "table.md").read_text()
    )
    printed = done(command("analysis", "validity", "--scale", "small"))
    assert "1 compared" in printed
    found = pd.read_csv(tmp_path / "runs" / "small" / "validity.csv")
    found = found.set_index(["better", "worse"])
    assert found.loc[("shifted", "none"), "seeds_better"] == 2
    done(command("analysis", "report"))
    assert "small scale" in (tmp_path / "runs" / "report" / "report.md").read_text()
