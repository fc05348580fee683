"""One tiny study through the commands: run, called again, killed and resumed, tabulated."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments import records
from experiments.costs import environment
from experiments.recipe import config
from tests.conftest import ROOT, study_folder

TINY = ["train.max_iter=8", "train.log_period=1", "train.checkpoint_period=3", "train.amp=false"]


def command(*words) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", *map(str, words)]


def call(*words, **env) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(*words), cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | env
    )


def study_command(small_set, runs, *, variants="none,shifted", overrides=()) -> list:
    return [
        "experiments", "run", "global-vs-conv", "--seeds", 1, "--variants", variants,
        "--runs", runs, "--dataset", small_set["dataset"], "--val", small_set["val"],
        "--overrides", " ".join([*TINY, *overrides]),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(small_set, tmp_path_factory) -> Path:
    """A study of two rows, run to its end."""
    runs = tmp_path_factory.mktemp("runs")
    done = call(*study_command(small_set, runs))
    assert done.returncode == 0, done.stdout + done.stderr
    return study_folder(runs, "global-vs-conv", small_set)


def folder_of(study: Path, variant: str) -> Path:
    (folder,) = study.glob(f"{variant}-*")
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "model_final.pth", weights_only=True)["model"]


def test_every_run_leaves_a_record(finished):
    frame = records.load(finished)
    assert sorted(frame.variant) == ["none", "shifted"]
    for record in frame.itertuples():
        assert 0 <= record.ap_box <= 100
        assert 0 <= record.ar100_mask <= 100
        assert record.macs > record.encoder_macs > 1e6
        assert record.train_seconds > 0
        assert record.peak_memory_mib > 50
        assert record.config["train"]["max_iter"] == 8
        assert record.machine == environment.processor()
        assert record.precision == "float32"
        folder = Path(record.path).parent
        predictions = json.loads((folder / record.predictions).read_text())
        assert {"image_id", "category_id", "bbox", "score", "segmentation"} <= predictions[0].keys()
        assert (folder / "log.txt").stat().st_size > 0
        # What was read is what is written, in both.
        for kept in (record.config, config.load(folder / "config.yaml")):
            read = [kept["dataloader"][part]["dataset"] for part in ("train", "test")]
            assert [f.split(",")[0] for f in read] == [record.data["train"], record.data["val"]]


def test_what_training_writes(finished):
    """The same scalars for programs (metrics.json) and for TensorBoard."""
    folder = folder_of(finished, "none")
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    training = [line for line in lines if "iteration" in line]
    assert [line["iteration"] for line in training] == list(range(8))
    wanted = {"total_loss", "lr/x1", "images_per_second", "memory_mib", "mfu", "gradient_norm"}
    assert all(wanted <= line.keys() for line in training)
    assert all(line["lr"] == line["lr/x1"] for line in training)
    assert training[-1]["memory_mib"] > 100
    assert 0 < training[-1]["mfu"] < 2  # of a rate that was measured on the same busy machine
    assert "eta_seconds" in training[-1]
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert wanted <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("total_loss")] == list(range(8))


def test_a_second_call_trains_nothing(finished, small_set):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("record.json")}
    again = call(*study_command(small_set, finished.parents[1]))
    assert again.returncode == 0
    assert "2 runs, 2 of them done" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("record.json")} == before


def test_same_seed_same_weights_and_figures(finished, small_set, tmp_path):
    assert call(*study_command(small_set, tmp_path, variants="shifted")).returncode == 0
    again = folder_of(study_folder(tmp_path, "global-vs-conv", small_set), "shifted")
    first = folder_of(finished, "shifted")
    assert again.name == first.name
    torch.testing.assert_close(weights(again), weights(first), rtol=0, atol=0)
    one, other = (records.read(folder / "record.json") for folder in (first, again))
    assert (one.box, one.mask) == (other.box, other.mask)


def test_killed_and_resumed_is_as_if_undisturbed(finished, small_set, tmp_path):
    """SIGKILL to all its processes after the first checkpoint; then the same command."""
    words = study_command(small_set, tmp_path, variants="none")
    process = subprocess.Popen(
        command(*words), cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL
    )
    study = study_folder(tmp_path, "global-vs-conv", small_set)
    deadline = time.monotonic() + 120
    while not list(study.glob("none-*/model_0*.pth")):
        assert process.poll() is None, "ended before the first checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    run = folder_of(study, "none")
    assert not (run / "record.json").exists()
    resumed = call(*words)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "Starting training from iteration 0" in (run / "log.txt").read_text()
    assert "Starting training from iteration 3" in (run / "log.txt").read_text()
    torch.testing.assert_close(weights(run), weights(folder_of(finished, "none")), rtol=0, atol=0)


@pytest.mark.slow
def test_two_commands_at_once_train_each_run_once(finished, small_set, tmp_path):
    words = command(*study_command(small_set, tmp_path, variants="none"))
    both = [
        subprocess.Popen(
            words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(2)
    ]
    for process in both:
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output
    run = folder_of(study_folder(tmp_path, "global-vs-conv", small_set), "none")
    assert (run / "log.txt").read_text().count("Starting training from iteration") == 1
    torch.testing.assert_close(weights(run), weights(folder_of(finished, "none")), rtol=0, atol=0)


def test_ctrl_c_stops_within_seconds(small_set, tmp_path):
    words = study_command(small_set, tmp_path, variants="none", overrides=["train.max_iter=100000"])
    process = subprocess.Popen(
        command(*words), cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    study = study_folder(tmp_path, "global-vs-conv", small_set)
    deadline = time.monotonic() + 120
    while not list(study.glob("none-*/model_0*.pth")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - started < 15
    assert process.returncode == 130
    assert "goes on from the last checkpoints" in output
    left, ended = ["pgrep", "-g", str(process.pid)], time.monotonic()
    while subprocess.run(left, capture_output=True, check=False).stdout:
        assert time.monotonic() - ended < 2  # what ends as it does
        time.sleep(0.1)


def test_table_and_plot(finished):
    done = call("analysis", "study", finished)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("table.csv", "table.md", "ap_vs_macs.png", "ap_vs_macs.svg"):
        assert (finished / name).stat().st_size > 0
    table = pd.read_csv(finished / "table.csv").set_index("variant")
    frame = records.load(finished).set_index("variant")
    assert table.ap_box.to_dict() == pytest.approx(frame.ap_box.to_dict())


def test_evaluating_its_checkpoint_gives_its_figures(finished, small_set, tmp_path):
    run = folder_of(finished, "none")
    done = call(
        "experiments", "evaluate", run / "config.yaml", run / "model_final.pth",
        "--val", small_set["val"], "--runs", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = tmp_path.rglob("result.json")
    record = records.read(run / "record.json")
    assert json.loads(result.read_text())["box"] == pytest.approx(record.box)
    assert json.loads(result.read_text())["mask"] == pytest.approx(record.mask)


def test_a_run_that_fails_names_its_error_and_spares_the_others(small_set, tmp_path):
    overrides = ["optimizer.lr=1e30", "train.clip_grad_norm=null"]
    done = call(*study_command(small_set, tmp_path, overrides=overrides))
    assert done.returncode == 1
    assert "none seed 0 failed: " in done.stdout
    assert "shifted seed 0 failed: " in done.stdout
    assert "FloatingPointError" in done.stdout
    assert "log: " in done.stdout


@pytest.mark.slow
def test_rows_that_differ_at_test_time_share_one_training(small_set, tmp_path):
    """Side by side: the second waits for the first's weights, and detects in its own way."""
    words = [
        "experiments", "run", "system-level", "--seeds", 1, "--variants", "hard-nms,soft-nms",
        "--runs", tmp_path, "--dataset", small_set["dataset"], "--val", small_set["val"],
        "--jobs", 2, "--overrides", "train.max_iter=2 train.amp=false",
    ]  # fmt: skip
    done = call(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    study = study_folder(tmp_path, "system-level", small_set)
    folders = [folder_of(study, name) for name in ("hard-nms", "soft-nms")]
    first, second = sorted(folders, key=lambda f: (f / "model_final.pth").is_symlink())
    assert not (first / "model_final.pth").is_symlink()
    assert (second / "model_final.pth").resolve() == (first / "model_final.pth").resolve()
    rows = records.load(study)
    assert rows.train_seconds.nunique() == 1
    assert rows.fingerprint.nunique() == 2
    hard, soft = (json.loads((f / "coco_instances_results.json").read_text()) for f in folders)
    assert [r["score"] for r in hard] != [r["score"] for r in soft]


@pytest.mark.slow
def test_a_table_of_several_models_and_detectors(small_set, tmp_path):
    """RetinaNet has no masks; the rows have sizes of their own."""
    words = [
        "experiments", "run", "plain-vs-hierarchical", "--variants", "swin,vit-retinanet",
        "--runs", tmp_path, "--dataset", small_set["dataset"], "--val", small_set["val"],
        "--jobs", 2, "--overrides", "train.max_iter=1 train.amp=false",
    ]  # fmt: skip
    done = call(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    study = study_folder(tmp_path, "plain-vs-hierarchical", small_set)
    done = call("analysis", "study", study)
    assert done.returncode == 0, done.stdout + done.stderr
    table = pd.read_csv(study / "table.csv").set_index("variant")
    assert table["size"].to_dict() == {"swin": "swin-mini", "vit-retinanet": "vit-mini"}
    assert table.ap_mask.notna().to_dict() == {"swin": True, "vit-retinanet": False}
    assert table.params.nunique() == 2
    lines = (study / "table.md").read_text().splitlines()
    start = ["vit-retinanet", "1", "vit-mini"]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    (row,) = [row for row in cells if row[:3] == start]
    assert "nan" not in row
