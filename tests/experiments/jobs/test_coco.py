"""The real path on real COCO images: data found, trained on, evaluated."""

import json
import os
import subprocess
import sys

import pytest

from experiments import records
from tests.conftest import ROOT


def experiments(coco, *words):
    command = [sys.executable, "-W", "ignore", "-m", "experiments", *map(str, words)]
    env = os.environ | {"DETECTRON2_DATASETS": str(coco)}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=env)


def test_coco_is_found_and_counted(coco, tmp_path):
    done = experiments(coco, "data", "coco", "--show", "--runs", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"val: {coco}/coco/annotations/instances_val2017.json" in done.stdout
    assert "person" in done.stdout
    assert (tmp_path / "coco" / "data.png").stat().st_size > 100_000


@pytest.mark.slow
def test_a_row_on_coco_and_evaluating_its_checkpoint(coco, tmp_path):
    done = experiments(
        coco, "run", "global-vs-conv", "--scale", "coco", "--size", "vit-ti", "--seeds", 1,
        "--variants", "shifted", "--runs", tmp_path,
        "--overrides", "train.max_iter=2 dataloader.train.total_batch_size=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    frame = records.load(tmp_path)
    assert list(frame.variant) == ["shifted"]
    assert set(map(tuple, frame.input_size)) == {(512, 512)}
    run = next((tmp_path / "coco" / "global-vs-conv").glob("shifted-*"))
    done = experiments(
        coco, "evaluate", run / "config.yaml", run / "model_final.pth", "--runs", tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = tmp_path.rglob("result.json")
    assert json.loads(result.read_text())["box"] == pytest.approx(
        records.read(run / "record.json").box, nan_ok=True
    )
