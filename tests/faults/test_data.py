"""Images and clocks that change under a run, and odd or illegal sets, through the commands."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import get_detection_dataset_dicts
from omegaconf import OmegaConf
from PIL import Image

from experiments import __main__ as front
from experiments import records
from experiments.data import catalog
from experiments.data.stream import Stream
from experiments.recipe import test_time
from tests.conftest import ROOT, write_set
from tests.experiments.data.test_odd_data import HUGE, ILLEGAL, IMAGES, config, noise, write_odd
from tests.faults.faulty import Faulty, call_here, error_of, mend
from tests.faults.test_files import assert_same_end

pytestmark = pytest.mark.faults

ITERATIONS, BATCH = 10, 2  # of 24 images: each is read once at most
WORKERS = {"dataloader.train.num_workers": 2}
# A day back, a day on, at each look.
JUMPS = """
real, looks = time.time, itertools.count()
time.time = lambda: real() + (86400 if next(looks) % 2 else -86400)
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Every row but the first two breaks in the first call; called again when all is mended."""
    root = tmp_path_factory.mktemp("data")
    sets = {
        name: f"{write_set(root, split, count)},{root / split}"
        for name, split, count in (("dataset", "train", 24), ("val", "val", 10))
    }
    with contextlib.redirect_stdout(io.StringIO()):
        dicts = get_detection_dataset_dicts(catalog.parse_split(sets["dataset"]).register())
    late = Stream(dicts, None, seed=0).source(ITERATIONS * BATCH - 1)["file_name"]
    evaluated = root / "val" / "4.bmp"
    faults = {
        "whole": {},
        "clock": {"fit": JUMPS},
        "corrupt": {3: f"damage({late!r}, 'cut')"},
        "gone": {3: f"damage({late!r}, 'gone')"},
        "gone-val": {"evaluate": f"damage({str(evaluated)!r}, 'gone')"},
        "corrupt-val": {"evaluate": f"damage({str(evaluated)!r}, 'cut')"},
        "killed": {3: "os.kill(trainer._data_loader_iter._workers[0].pid, signal.SIGKILL)"},
    }
    # Each row finds all images as they were.
    repair = f"for f in Path({str(root)!r}).rglob('*.whole'): f.rename(f.with_suffix(''))\n"
    faults = {
        name: {**fault, "fit": repair + fault.get("fit", "")} for name, fault in faults.items()
    }
    words = dict.fromkeys(("gone", "killed"), WORKERS)
    words["corrupt-val"] = {"dataloader.test.num_workers": 1}
    overrides = [f"train.max_iter={ITERATIONS}"]
    faulty = Faulty(root / "study", sets, faults, overrides, ["--jobs", 1], words)
    first = faulty.call()
    mend(root)
    between = {
        name: sorted(p.name for p in folder.glob("model_*.pth"))
        for name, folder in faulty.folders().items()
    }
    faulty.write({})
    second = faulty.call()
    files = dict.fromkeys(("corrupt", "gone"), late)
    files |= dict.fromkeys(("gone-val", "corrupt-val"), str(evaluated))
    return faulty.folders(), files, first, between, second


def test_the_other_rows_go_on(study):
    _, _, first, _, second = study
    assert first.returncode == 1, first.stdout + first.stderr
    for name in ("whole", "clock"):
        assert f"{name}  seed 0  done" in first.stdout
    assert second.returncode == 0, second.stdout + second.stderr


@pytest.mark.parametrize("name", ["corrupt", "gone", "gone-val", "corrupt-val"])
def test_an_image_that_breaks_in_mid_run_is_one_line(name, study):
    _, files, first, between, _ = study
    line = error_of(name, first.stdout)
    assert line.startswith(f"cannot read the image {files[name]}: ")
    assert ("No such file" in line) == name.startswith("gone")
    assert between[name][-1] == ("model_final.pth" if "val" in name else "model_0000007.pth")


def test_a_killed_reader_is_one_line(study):
    _, _, first, between, _ = study
    assert "a process that reads images was killed (memory?)" in error_of("killed", first.stdout)
    assert between["killed"]


@pytest.mark.parametrize("name", ["clock", "corrupt", "gone", "gone-val", "corrupt-val", "killed"])
def test_all_end_as_if_undisturbed(name, study):
    folders, *_ = study
    assert_same_end(folders[name], folders["whole"])


def test_a_jumping_clock_fools_nobody(study):
    folders, *_ = study
    whole, clock = (records.read(folders[name] / "record.json") for name in ("whole", "clock"))
    assert 0 < clock.train_seconds < 600
    assert 0 < clock.evaluate_seconds < 600
    assert clock.train_seconds < 20 * whole.train_seconds
    saved = [
        re.findall(r"Saved (\S+)", (folders[name] / "log.txt").read_text())
        for name in ("whole", "clock")
    ]
    assert saved[0] == saved[1]  # none more, or less, by checkpoint_minutes
    for line in (folders["clock"] / "metrics.json").read_text().splitlines():
        assert 0 <= json.loads(line).get("eta_seconds", 0) < 3600


def command(*words) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ,
    )  # fmt: skip


def test_all_that_is_odd_but_legal_trains_and_evaluates(tmp_path):
    """Sizes from 1x1 to 10,000x8,000, grey, CMYK, 16 bit, turned, empty, crowds only, boxes outside
    and without area, by the recipe of the coco scale."""
    split = write_odd(tmp_path, IMAGES | HUGE, run_lengths=True)
    own = ["--dataset", split, "--val", split, "--runs", tmp_path / "runs"]
    command("experiments", "check-data", "coco", *own)
    defects = pd.read_csv(tmp_path / "runs/coco/data-defects.csv")
    errors = defects[(defects.severity == "error") & (defects.split == "train")]
    assert set(errors.kind) <= {"in train and val"}
    images = len(IMAGES | HUGE)
    words = [
        f"train.max_iter={images}", "train.amp=false", "dataloader.train.total_batch_size=1",
        "dataloader.train.num_workers=1", "dataloader.image_size=128",
        "model.backbone.img_size=128", "train.threads=1",
        "model.roi_heads.batch_size_per_image=16", "model.proposal_generator.post_nms_topk=[50,50]",
        # A mask of the largest image takes 80 MB.
        "model.roi_heads.box_predictor.test_topk_per_image=5",
    ]  # fmt: skip
    done = command(
        "experiments", "run", "global-vs-conv", "--scale", "coco", "--size", "vit-ti", "--variants",
        "none", *own, "--yes", "--overrides", " ".join(words),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = records.load(tmp_path / "runs").itertuples()
    assert record.data["images"] == [images + 2] * 2  # with an empty one, and crowds only
    assert 0 <= record.ap_box <= 100


@pytest.mark.parametrize("message", ILLEGAL)
def test_illegal_sets_are_one_line_and_nothing_is_written(message, tmp_path):
    path = write_set(tmp_path, "train", 3)
    coco = json.loads(path.read_text())
    ILLEGAL[message](coco)
    path.write_text(json.dumps(coco))
    val = write_set(tmp_path, "val", 2)
    own = ["--dataset", f"{path},{tmp_path / 'train'}", "--val", f"{val},{tmp_path / 'val'}"]
    code, output = call_here(front, "run", "global-vs-conv", *own, "--runs", tmp_path / "runs")
    assert code == 2
    (line,) = output.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert str(path) in line
    assert not [p for p in (tmp_path / "runs").rglob("*") if p.is_file()]
    code, output = call_here(
        front, "check-data", "mini", *own, "--runs", tmp_path / "runs", "--jobs", 1
    )
    assert code == 1
    assert str(tmp_path / "runs" / "mini" / "data-defects.csv") in output


@torch.no_grad()
def test_sixteen_bit_greyscale_at_several_test_sizes(tmp_path):
    """detectron2 reads the file itself there, and clips 16 bits to white."""
    pixels = noise(96, 128, 1, np.uint16)
    Image.fromarray(pixels).save(tmp_path / "16.png")
    Image.fromarray((pixels >> 8).astype(np.uint8)).save(tmp_path / "8.png")
    cfg = config()
    cfg.model.roi_heads.box_predictor.test_score_thresh = 0.0
    torch.manual_seed(0)
    model = instantiate(cfg.model).eval()
    words = OmegaConf.merge(cfg.test, dict(tta_sizes=[64, 96], tta_max_size=256))
    mapper = instantiate(cfg.dataloader.test.mapper)
    with test_time.applied(model, words) as detector:
        deep, flat = (
            detector([mapper(dict(file_name=str(tmp_path / name), height=96, width=128))])[0]
            for name in ("16.png", "8.png")
        )
    assert len(flat["instances"]) > 3
    torch.testing.assert_close(deep["instances"].scores, flat["instances"].scores)
    boxes = [x["instances"].pred_boxes.tensor for x in (deep, flat)]
    torch.testing.assert_close(*boxes)
