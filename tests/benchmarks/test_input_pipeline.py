"""The benchmark of the input pipeline: the images it makes, and that its rows agree on them."""

import numpy as np
import pytest
from PIL import Image

from benchmarks import input_pipeline


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.setattr(input_pipeline, "DATASET", "a_set_that_is_not_there")
    return input_pipeline.dataset(tmp_path, count=3)


def test_generated_images_are_as_large_as_cocos(made):
    data, dicts = made
    assert data == "3 generated images, 640 x 480, of 7 objects"
    assert len(dicts) == 3
    for entry in dicts:
        with Image.open(entry["file_name"]) as image:
            assert (image.size, image.mode) == ((640, 480), "RGB")
        assert len(entry["annotations"]) == 7


@pytest.mark.slow
def test_rows_agree_and_are_measured(made):
    table = input_pipeline.measure(made[1], rounds=2).set_index("row")
    assert list(table.index) == list(input_pipeline.ROWS)
    assert table.loc["ours", "same"] is True
    assert table.loc["detectron2", "times_faster"] == 1
    assert (table.per_cpu_second_min <= table.per_cpu_second).all()
    shown = input_pipeline.shown(table.reset_index())
    assert "ours" in shown
    assert "NO" not in shown


def test_other_pixels_would_be_seen(made):
    """The digest is of what the mapper gives."""
    dicts = made[1][:1]
    before = input_pipeline.digest("ours", dicts)
    pixels = np.array(Image.open(dicts[0]["file_name"]))
    pixels[100, 100] ^= 64
    Image.fromarray(pixels).save(dicts[0]["file_name"], quality=90)
    assert input_pipeline.digest("ours", dicts) != before
