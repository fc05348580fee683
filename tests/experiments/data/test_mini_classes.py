"""The mini images for pre-training: the same everywhere, object and label belong together."""

import hashlib

import numpy as np

from experiments.data.mini import classes as mini_classes
from experiments.data.mini import detection as mini

# Of the first 40 images of training and their categories. A change here needs another VERSION.
DIGEST = {2: "b00edb22b319ccc4"}


def test_same_pixels_and_categories_everywhere():
    digest = hashlib.sha256()
    for index in range(40):
        image, category = mini_classes.draw(index, "train")
        digest.update(image.tobytes())
        digest.update(bytes([category]))
    assert digest.hexdigest()[:16] == DIGEST[mini_classes.VERSION]


def test_splits_differ():
    images = [mini_classes.draw(0, split)[0] for split in ("train", "val")]
    assert not np.array_equal(*images)


def test_categories_are_about_as_frequent():
    drawn = [mini_classes.draw(index, "val")[1] for index in range(200)]
    counts = np.bincount(drawn, minlength=len(mini.CATEGORIES))
    assert counts.min() > 200 / len(mini.CATEGORIES) / 2


def test_the_folders_are_the_categories(tmp_path, monkeypatch):
    monkeypatch.setattr(mini_classes, "IMAGES", {"train": 8, "val": 4})
    root = mini_classes.ensure(tmp_path)
    for split, count in mini_classes.IMAGES.items():
        for index in range(count):
            category = mini.CATEGORIES[mini_classes.draw(index, split)[1]]
            name = f"{mini_classes.VERSION}-{index:06d}.bmp"
            assert (root / split / category / name).is_file()
