"""The mini images for pre-training: objects of one category each, in folders by category.

The layout is ImageNet's. Drawn as those of `detection`: closed outlines among open ones, on uneven
grey, half of them or more in the image's colour. All objects of an image have one shape: that and
the colour are its category. Same bytes everywhere.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from . import detection, outlines

VERSION = 2  # raise it when a change here, or in what it takes from others here, changes the files
IMAGES = {"train": 2400, "val": 400}
_CLUTTER = (1, 4)  # open outlines, from to


def draw(index: int, split: str) -> tuple[np.ndarray, int]:
    """One image and its category's index, 0..3.

    Args:
        index: number of the image in its split.
        split: "train" or "val".

    Returns:
        uint8 (128, 128, 3) RGB, and the index in `detection.CATEGORIES`.
    """
    rng = np.random.RandomState(2_000_003 * VERSION + 100_000 * (split == "val") + index)
    image = outlines.background(rng)
    color, shape = int(rng.randint(len(detection.COLORS))), int(rng.randint(len(detection.SHAPES)))
    taken: list[tuple[int, int, int]] = []
    objects: list[detection.Object] = []
    while not objects:  # a large one may find no room
        objects = detection.place_objects(rng, rng.randint(2, 6), taken, shape)
    detection.draw_objects(rng, image, objects, set(range((len(objects) + 1) // 2)), color)
    for _ in range(rng.randint(*_CLUTTER)):
        outlines.draw_open(rng, image, taken)
    image += rng.randint(-6, 7, image.shape)
    return image.clip(0, 255).astype(np.uint8), detection.category(color, shape)


def write(root: Path) -> None:
    """Write all images under `root`, as <split>/<category>/<version>-<number>.bmp."""
    for split, count in IMAGES.items():
        for name in detection.CATEGORIES:
            (root / split / name).mkdir(parents=True)
        for index in range(count):
            image, category = draw(index, split)
            name = f"{VERSION}-{index:06d}.bmp"
            Image.fromarray(image).save(root / split / detection.CATEGORIES[category] / name)


def ensure(datasets: Path) -> Path:
    """The folder of the set, made now (137 MB) if it is not there; as `detection.ensure`."""
    return detection.ensure_folder(datasets, f"mini-classes-v{VERSION}", write)
