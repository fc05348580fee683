"""Image files of every kind are read right, and broken ones are named."""

import json
import re
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
from detectron2.data.detection_utils import read_image
from PIL import Image

from analysis import prediction_sheet
from experiments.data import images, sheet
from experiments.data.annotations import Split
from experiments.errors import UserError
from tests.conftest import ROOT

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (20, 31, 3), dtype=np.uint8)
EIGHT_BIT = {
    "colour.jpg": (Image.fromarray(PIXELS), {}),
    "colour.png": (Image.fromarray(PIXELS), {}),
    "grey.jpg": (Image.fromarray(PIXELS[..., 0]), {}),
    "grey.png": (Image.fromarray(PIXELS[..., 0]), dict(transparency=3)),
    "bits.png": (Image.fromarray(PIXELS[..., 0] > 99), {}),
    "palette.png": (Image.fromarray(PIXELS).quantize(16), dict(transparency=bytes(range(16)))),
    "palette.gif": (Image.fromarray(PIXELS).quantize(16), {}),
    "alpha.png": (Image.fromarray(np.dstack([PIXELS, PIXELS[..., 0]])), {}),
    "grey_alpha.png": (Image.fromarray(PIXELS).convert("LA"), {}),
    "cmyk.jpg": (Image.fromarray(PIXELS).convert("CMYK"), {}),
    "colour.bmp": (Image.fromarray(PIXELS), {}),
    "colour.webp": (Image.fromarray(PIXELS), {}),
}


@pytest.mark.parametrize("name", EIGHT_BIT)
def test_equal_to_detectron2s(name, tmp_path):
    image, words = EIGHT_BIT[name]
    image.save(tmp_path / name, **words)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = images.read(str(tmp_path / name))
    assert (found.dtype, found.shape) == (np.uint8, (20, 31, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        np.testing.assert_array_equal(found, read_image(str(tmp_path / name), "RGB"))


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("form", ["jpg", "png"])
def test_upright(orientation, form, tmp_path):
    """0 and 9 mean nothing."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = str(tmp_path / f"turned.{form}")
    Image.fromarray(PIXELS).save(path, exif=exif)
    found = images.read(path)
    assert found.shape == ((31, 20, 3) if 5 <= orientation <= 8 else (20, 31, 3))
    np.testing.assert_array_equal(found, read_image(path, "RGB"))


def test_broken_exif_data_are_ignored(tmp_path):
    path = str(tmp_path / "exif.jpg")
    Image.fromarray(PIXELS).save(path, exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff\x00")
    np.testing.assert_array_equal(images.read(path), read_image(path, "RGB"))


@pytest.mark.parametrize("name", ["grey.png", "little.tif", "big.tif"])
def test_sixteen_bit_greyscale_is_its_high_byte(name, tmp_path):
    values = RANDOM.integers(0, 2**16, (20, 31)).astype(">u2" if name == "big.tif" else "<u2")
    path = str(tmp_path / name)
    Image.fromarray(values).save(path)
    assert read_image(path, "RGB").mean() > 250  # what this is for: nearly all white
    np.testing.assert_array_equal(images.read(path), np.dstack([values >> 8] * 3))


def test_ten_thousand_by_eight_thousand_pixels(tmp_path):
    path = str(tmp_path / "large.png")
    Image.new("1", (10_000, 8_000), 1).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = images.read(path)
    assert found.shape == (8_000, 10_000, 3)
    assert found[-1, -1].tolist() == [255] * 3


def broken(kind: str, path) -> None:
    if kind == "missing":
        return
    if kind == "folder":
        path.mkdir()
    elif kind == "bomb":
        Image.new("1", (20_000, 9_000)).save(path, "png")
    elif kind == "32 bits":
        Image.fromarray(PIXELS[..., 0].astype(np.float32)).save(path, "tiff")
    elif kind in ("jpeg", "png"):
        Image.fromarray(np.tile(PIXELS, (9, 9, 1))).save(path, kind)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_bytes({"empty": b"", "text": b"no image"}[kind])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "No such file"),
        ("folder", "Is a directory"),
        ("empty", "empty, or of no known image format"),
        ("text", "empty, or of no known image format"),
        ("jpeg", "truncated"),
        ("png", "truncated"),
        ("bomb", "decompression bomb"),
        ("32 bits", "convert it to 8 bits"),
    ],
)
def test_broken_files_are_named_in_one_line(kind, reason, tmp_path):
    path = tmp_path / "the image"
    broken(kind, path)
    with pytest.raises(UserError, match=reason) as error:
        images.read(str(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_every_sheet_shows_images_as_training_reads_them(tmp_path, monkeypatch):
    """Turned by EXIF data, and of 16 bits."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.tile(PIXELS, (2, 2, 1))).save(tmp_path / "turned.png", exif=exif)
    deep = RANDOM.integers(0, 2**16, (30, 40)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    names = {"turned.png": (62, 40), "deep.png": (30, 40)}
    coco = dict(
        images=[
            dict(id=i, file_name=name, height=size[0], width=size[1])
            for i, (name, size) in enumerate(names.items())
        ],
        categories=[dict(id=1, name="a")],
        annotations=[
            dict(id=i, image_id=i, category_id=1, iscrowd=0, bbox=[2, 2, 9, 9], area=81)
            for i in range(2)
        ],
    )
    (tmp_path / "set.json").write_text(json.dumps(coco))
    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    sheet.write(Split(str(tmp_path / "set.json"), str(tmp_path)), tmp_path / "sheet.png")
    for axis, (name, size) in zip(drawn[0].axes, names.items(), strict=False):
        expected = images.read(str(tmp_path / name))
        assert expected.shape[:2] == size
        np.testing.assert_array_equal(axis.images[0].get_array(), expected)
        assert len(axis.patches) == 1  # boxes alone are drawn too
        small = prediction_sheet._pixels(tmp_path / name)
        assert small.size == size[::-1]
        darkness = np.asarray(small, float).mean() - 127.5
        assert darkness == pytest.approx(expected.mean() / 2, abs=4)


def test_no_other_place_opens_images_of_data_sets():
    """`report` and `prediction_sheet` open pictures that they drew."""
    opening = {
        str(path.relative_to(ROOT))
        for room in ("experiments", "analysis")
        for path in (ROOT / room).rglob("*.py")
        if re.search(r"Image\.open\(|imread\(|\bread_image\(|decode_image\(", path.read_text())
    }
    drawn = {"analysis/inline.py", "analysis/prediction_sheet.py"}
    assert opening - drawn == {"experiments/data/images.py"}
