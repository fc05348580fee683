"""The embedded set: the same bytes everywhere, a true COCO set, with what its page promises."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes

from experiments.data import catalog
from experiments.data.mini import detection as mini
from experiments.recipe import config

# Of the first 40 training images and annotations; a change of the drawing code that changes it
# must raise mini.VERSION.
DIGEST = {2: "1fffc7db06d93d28"}


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


def objects_of(annotations):
    return [a for a in annotations if not a["iscrowd"]]


def colored(image):
    """Pixels with the colour of an image: +1 warm, -1 cold, 0 grey."""
    red_over_blue = image[..., 0].astype(int) - image[..., 2]
    return np.sign(red_over_blue) * (np.abs(red_over_blue) > 60)


def test_every_second_image_is_warm_and_shows_no_other_color(drawn):
    for index, (image, annotations) in enumerate(drawn):
        color = index % 2
        assert {(a["category_id"] - 1) // len(mini.SHAPES) for a in annotations} <= {color}
        signs = set(np.unique(colored(image))) - {0}
        assert signs == ({1 - 2 * color} if objects_of(annotations) else set())


def test_a_third_to_six_tenths_of_the_objects_show_the_color_the_others_are_grey(drawn):
    for image, annotations in drawn:
        objects = objects_of(annotations)
        if len(objects) > 1:
            assert 1 <= sum(a["shows_cue"] for a in objects) <= 0.6 * len(objects) + 0.5
        seen = colored(image) != 0
        shown = np.zeros_like(seen)
        for a in objects:
            if a["shows_cue"]:
                x, y, w, h = a["bbox"]
                shown[int(y) : int(np.ceil(y + h)), int(x) : int(np.ceil(x + w))] = True
        assert not (seen & ~shown).any()


def test_distances_are_those_of_the_pixels(drawn):
    """Measured again on the image: which windows have the colour, how far the object's are."""
    distances = []
    for image, annotations in drawn:
        count = (colored(image) != 0).reshape(4, 32, 4, 32).sum((1, 3))
        for a in objects_of(annotations):
            if a["shows_cue"]:
                assert (a["cue_distance"], a["cue_by_convs"]) == (0, True)
                continue
            x, y, w, h = a["bbox"]
            seen = mini.seen_by_windows(a["bbox"]) & (colored(image) != 0)
            assert a["cue_by_convs"] == seen.any()
            # The box may touch windows in which the object has fewer pixels than count.
            rows = range(int(y) // 32, int(np.ceil((y + h) / 32)))
            columns = range(int(x) // 32, int(np.ceil((x + w) / 32)))
            steps = [
                max(abs(r - u), abs(c - v))
                for u, v in np.argwhere(count >= mini.SHOWN)
                for r in rows
                for c in columns
            ]
            assert a["cue_distance"] >= min(steps)
            if len(rows) == len(columns) == 1:
                assert a["cue_distance"] == min(steps)
            distances.append(a["cue_distance"])
    assert set(distances) == {0, 1, 2, 3}


def test_what_a_box_sees_without_exchange_is_what_its_features_depend_on():
    """By gradients of what RoIAlign gives the heads, in the mini detector without propagation."""
    cfg = config.load(config.base_path("mini", "vit-mini", "mask_rcnn", "coco"))
    cfg.model.backbone.propagation = "none"
    model = instantiate(cfg.model).double().eval()
    image = torch.rand(1, 3, mini.SIDE, mini.SIDE, dtype=torch.float64, requires_grad=True)
    maps = model.backbone(image)
    rng = np.random.RandomState(0)
    most = 0.0
    for _ in range(40):
        (x, y), (w, h) = rng.uniform(0, 100, 2), rng.uniform(8, 60, 2)
        box = [x, y, min(w, mini.SIDE - x), min(h, mini.SIDE - y)]
        corners = torch.tensor([[x, y, x + box[2], y + box[3]]], dtype=torch.float64)
        levels = [maps[name] for name in model.roi_heads.box_in_features]
        features = model.roi_heads.box_pooler(levels, [Boxes(corners)])
        (gradient,) = torch.autograd.grad(features.square().sum(), image, retain_graph=True)
        read = (gradient != 0).any(1)[0].numpy()
        seen = mini.seen_by_windows(box)
        assert not (read & ~seen).any()
        most = max(most, read.sum() / seen.sum())
    assert most > 0.99  # nothing that is not read counts as seen


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
