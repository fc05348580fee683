"""The trained encoder of a run, and the images it is tried on."""

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data.detection_utils import read_image

from analysis import trained_encoders
from backbones import PROPAGATIONS
from experiments.errors import UserError
from tests.analysis.conftest import runs_of


def test_of_a_run_as_its_detector_sees_the_images(trained_run, small_set):
    encoder, images = trained_encoders.encoder_and_images(trained_run, 4)
    assert encoder.plan == ("window", "global") * 3
    _, every = trained_encoders.encoder_and_images(trained_run, 16)
    assert len(every.flatten(1).unique(dim=0)) == 10  # of fewer all, each once
    assert not encoder.training
    assert images.shape == (4, 3, 128, 128)
    # 4 of 10 images, evenly spread.
    listed = json.loads(Path(small_set["val"].split(",")[0]).read_text())["images"]
    root = Path(small_set["val"].split(",")[1])
    pixels = read_image(str(root / listed[5]["file_name"]), format="RGB").transpose(2, 0, 1)
    mean, std = (
        np.array(v)[:, None, None] for v in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    )
    assert np.abs(images[2].numpy() - (pixels - mean) / std).max() < 1e-5


def test_runs_in_the_order_of_rows(tmp_path):
    results = runs_of(tmp_path / "x", tmp_path / "y")
    results.table = results.table.iloc[::-1]
    assert list(trained_encoders.folders(results)) == [
        ("b", 0, tmp_path / "y"), ("a", 0, tmp_path / "x")
    ]  # fmt: skip


def test_a_study_of_ones_own_brings_its_variants(tmp_path):
    file = tmp_path / "of_my_own.py"
    file.write_text(
        "from backbones import PROPAGATIONS\n"
        "from experiments.studies import Study, Variant\n"
        "@PROPAGATIONS.register('of_my_own')\n"
        "class OfMyOwn(PROPAGATIONS.get('none')):\n"
        "    pass\n"
        "study = Study('of-my-own', 'Why?', (Variant('a'),))\n"
    )
    results = runs_of(tmp_path / "x")
    results.manifest["source"] = str(file)
    assert "of_my_own" not in PROPAGATIONS
    list(trained_encoders.folders(results))
    assert "of_my_own" in PROPAGATIONS
    results.manifest["source"] = str(tmp_path / "gone.py")
    with pytest.raises(UserError, match="no study file at"):
        list(trained_encoders.folders(results))
