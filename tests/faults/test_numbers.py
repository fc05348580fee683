"""Losses and gradients that are not finite: stopped with what is to know, or left out."""

import contextlib
import io
import re
from pathlib import Path

import pytest
from detectron2.data import get_detection_dataset_dicts

from experiments.data import catalog
from experiments.data.stream import Stream
from tests.faults.faulty import Faulty, error_of

pytestmark = pytest.mark.faults

IMAGE = 17  # whose losses are no numbers; in the second micro batch of iteration 1, and in 3
NAN = f"""
original = trainer.model.forward
def forward(batch):
    losses = original(batch)
    if {IMAGE} in [image["image_id"] for image in batch]:
        losses["loss_cls"] = losses["loss_cls"] * float("nan")
    return losses
trainer.model.forward = forward
"""
# The loss is finite; what flows back from it is not.
GRADIENTS = f"""
original = trainer.model.forward
def forward(batch):
    losses = original(batch)
    if {IMAGE} in [image["image_id"] for image in batch]:
        losses["loss_cls"].register_hook(lambda gradient: gradient * float("nan"))
    return losses
trainer.model.forward = forward
"""
STEPS = ["dataloader.train.total_batch_size=8", "dataloader.train.micro_batch_size=4"]


@pytest.fixture(scope="module")
def images(small_set) -> list[int]:
    """Ids in the order of training."""
    split = catalog.parse_split(small_set["dataset"])
    with contextlib.redirect_stdout(io.StringIO()):
        stream = Stream(get_detection_dataset_dicts(split.register()), None, seed=0)
    return [stream.source(position)["image_id"] for position in range(48)]


def study(root: Path, small_set, faults: dict, gpus: int, *overrides) -> Faulty:
    overrides = [*STEPS, "train.checkpoint_period=1", *overrides]
    return Faulty(root, small_set, faults, overrides, ["--gpus", gpus])


def assert_says(line: str, images: list[int], what: str) -> None:
    """Iteration, images of the micro batch (of the step, where gradients tell no more), and the
    checkpoint to go on from."""
    position = images.index(IMAGE)
    iteration, size = position // 8, 8 if what == "gradients" else 4
    named = images[position // size * size :][:size]
    assert f"iteration {iteration}: {what}" in line
    found = re.search(r"images ([\d, ]+);", line)[1]
    assert sorted(map(int, found.split(", "))) == sorted(named)
    last = f"model_{iteration - 1:07d}.pth" if iteration else "none"
    assert f"last good checkpoint: {last}. " in line
    assert "train.may_skip=" in line


@pytest.mark.parametrize("gpus", [1, 2])
def test_not_finite_stops_and_says_where(gpus, small_set, images, tmp_path):
    assert images.index(IMAGE) >= 8  # there is a checkpoint before
    faults = {"nan": {0: NAN}, "gradients": {0: GRADIENTS}}
    faulty = study(tmp_path / f"stops-{gpus}", small_set, faults, gpus)
    done = faulty.call()
    assert done.returncode == 1, done.stdout + done.stderr
    assert_says(error_of("nan", done.stdout), images, "loss_cls nan")
    assert_says(error_of("gradients", done.stdout), images, "gradients")
    for folder in faulty.folders().values():
        assert (folder / f"model_{images.index(IMAGE) // 8 - 1:07d}.pth").is_file()
        assert not (folder / "record.json").exists()


def test_some_steps_may_be_left_out(small_set, images, tmp_path):
    """The image comes twice."""
    again = 24 + images[24:].index(IMAGE)
    faulty = study(tmp_path / "skips", small_set, {"nan": {0: NAN}}, 1, "train.may_skip=1")
    (folder,) = faulty.folders().values()
    done = faulty.call()
    assert done.returncode == 1
    assert f"iteration {again // 8}: loss_cls nan" in error_of("nan", done.stdout)
    log = (folder / "log.txt").read_text()
    assert f"iteration {images.index(IMAGE) // 8}: loss_cls nan" in log
    assert "step left out, 1 of 1" in log
    faulty.overrides.append("train.may_skip=2")
    faulty.write({"nan": {str(again // 8): NAN}})
    done = faulty.call()
    assert done.returncode == 0, done.stdout + done.stderr
    log = (folder / "log.txt").read_text()
    assert "step left out, 2 of 2" in log  # the first is remembered
    assert f"Starting training from iteration {again // 8}" in log
