"""The embedded set: the same bytes everywhere, a true COCO set, with what its page promises."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pycocotools.mask as mask_util
import pytest

from experiments.data import catalog, mini

# Of the first 40 training images and annotations; a change of the drawing code that changes it
# must raise mini.VERSION.
DIGEST = {1: "e7bbfd00337c93a7"}


def test_same_pixels_and_annotations_everywhere():
    digest = hashlib.sha256()
    for index in range(40):
        image, annotations = mini.draw(index, "train")
        digest.update(image.tobytes())
        digest.update(json.dumps(annotations, sort_keys=True).encode())
    assert digest.hexdigest()[:16] == DIGEST[mini.VERSION]


def test_splits_differ():
    assert not np.array_equal(mini.draw(0, "train")[0], mini.draw(0, "val")[0])


@pytest.fixture(scope="module")
def drawn():
    return [mini.draw(index, "val") for index in range(120)]


def rle(annotation):
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        return mask_util.merge(mask_util.frPyObjects(segmentation, mini.SIDE, mini.SIDE))
    return mask_util.frPyObjects(segmentation, mini.SIDE, mini.SIDE)


def test_boxes_and_areas_are_those_of_the_masks(drawn):
    for _, annotations in drawn:
        for annotation in annotations:
            mask = rle(annotation)
            assert annotation["area"] == mask_util.area(mask)
            x, y, w, h = annotation["bbox"]
            assert x >= 0
            assert y >= 0
            assert max(x + w, y + h) <= mini.SIDE
            assert np.abs(mask_util.toBbox(mask) - annotation["bbox"]).max() <= 1.0


def test_objects_of_all_sizes_categories_and_crowds(drawn):
    annotations = [a for _, found in drawn for a in found]
    objects = [a for a in annotations if not a["iscrowd"]]
    assert {a["category_id"] for a in objects} == set(range(1, len(mini.CATEGORIES) + 1))
    areas = np.array([a["area"] for a in objects])
    assert (areas < 32**2).sum() > 50
    assert ((areas >= 32**2) & (areas < 96**2)).sum() > 50
    assert (areas >= 96**2).sum() > 5
    assert min(a["bbox"][2] for a in objects) < 32 < 100 < max(a["bbox"][2] for a in objects)
    assert any(a["iscrowd"] for a in annotations)


def test_the_band_alone_tells_the_categories_of_a_shape_apart(drawn):
    """All objects of an image have its band's category, and the band's colour is in the image."""
    for image, annotations in drawn:
        bands = {(a["category_id"] - 1) // len(mini.SHAPES) for a in annotations}
        if not bands:
            continue
        (band,) = bands
        red_over_blue = image[..., 0].astype(int) - image[..., 2]
        colored = np.abs(red_over_blue) > 60
        assert colored.any()
        assert (red_over_blue[colored] > 0).all() == (band == 0)


def test_made_once_even_by_several_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(mini, "IMAGES", {"train": 3, "val": 2})
    with ThreadPoolExecutor(4) as pool:
        roots = list(pool.map(lambda _: mini.ensure(tmp_path), range(4)))
    assert set(roots) == {tmp_path / f"mini-v{mini.VERSION}"}
    assert [p.name for p in tmp_path.iterdir()] == [roots[0].name]
    train = catalog.Split(
        str(roots[0] / "annotations/instances_train.json"), str(roots[0] / "train")
    )
    val = catalog.Split(str(roots[0] / "annotations/instances_val.json"), str(roots[0] / "val"))
    assert catalog.Data.of(train, val).categories == mini.CATEGORIES


def test_nothing_half_made_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(
        mini, "write", lambda root: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(OSError, match="No space left"):
        mini.ensure(tmp_path)
    assert list(tmp_path.iterdir()) == []
