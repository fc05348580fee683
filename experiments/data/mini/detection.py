"""The mini set: a COCO-format detection set made by code, for minutes of training on a CPU.

128 px images of outlines, closed ones (objects) among open ones (clutter). Each image has a colour,
warm or cold, and an object's category is its shape together with the image's colour. Some objects,
those on one side of the image or here and there, are drawn in that colour: they teach what it
means, and show it. The others are grey, and look the same in both kinds of image: their category is
known only where information comes from a coloured one, from within their own attention window or
across windows. Annotations say which objects show the colour, and how far it is to the nearest
window that does. docs/mini.md says what this can and cannot tell.

Everything is integer arithmetic on numpy's frozen `RandomState` stream, and images are BMP, whose
encoding has no freedom: the files have the same bytes on every machine.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

from . import outlines
from .outlines import SHAPES, SIDE

VERSION = 2  # raise it when a change below changes the files
WINDOW = 32  # pixels: an attention window of vit-mini
# Pixels that convs of vit-mini's detector read: the neck's 3x3 conv at stride 8, and RoIAlign
# between the centres of that map, beyond a box; the stem beyond a window, to its left and above.
NECK, STEM = 8 + 4, 7
IMAGES = {"train": 1200, "val": 300}
COLORS = {"warm": (225, 120, 40), "cold": (40, 120, 225)}
CATEGORIES = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)
SHOWN = 8  # pixels of the colour, or of an object, that a window has at least to count


def draw(index: int, split: str) -> tuple[np.ndarray, list[dict]]:
    """One image and its annotations; every second one is warm.

    Args:
        index: number of the image in its split.
        split: "train" or "val".

    Returns:
        uint8 (128, 128, 3) RGB, and COCO annotations without ids. Beside COCO's keys they have
        `shows_cue`, whether the object is drawn in the image's colour; `cue_distance`, from the
        windows that have pixels of the object to the nearest that shows the colour, in windows (0:
        the same one, and for what shows it itself); and `cue_by_convs`, whether windows without any
        exchange let its box see a pixel of the colour, through the convs of stem, neck and heads.
    """
    rng = np.random.RandomState(1_000_003 * VERSION + 100_000 * (split == "val") + index)
    color = index % len(COLORS)
    image = outlines.background(rng)
    taken: list[tuple[int, int, int]] = []
    crowd = None
    if rng.randint(10) == 0:
        crowd = _draw_crowd(rng, image, color, taken)
    objects = place_objects(rng, rng.randint(8, 12), taken)
    shows = _which_show(rng, objects)
    annotations = draw_objects(rng, image, objects, shows, color)
    if crowd is not None:
        annotations.append(crowd)
    for _ in range(rng.randint(1, 4)):
        outlines.draw_open(rng, image, taken)
    image += rng.randint(-6, 7, image.shape)
    return image.clip(0, 255).astype(np.uint8), annotations


@dataclass(frozen=True)
class Object:
    """A closed outline, or a small filled one.

    Args:
        shape: index in `SHAPES`.
        radius: half its size in pixels.
        rotation: index in `outlines.ROTATIONS`.
        center: (x, y) in pixels.
    """

    shape: int
    radius: int
    rotation: int
    center: tuple[int, int]

    @property
    def corners(self) -> np.ndarray:
        """As of `outlines.corners`."""
        return outlines.corners(SHAPES[self.shape], self.radius, self.center, self.rotation)


def place_objects(
    rng: np.random.RandomState, count: int, taken: list, shape: int | None = None
) -> list[Object]:
    """Up to `count` objects, as there is room.

    Args:
        taken: as of `outlines.place`; the objects are added.
        shape: of all of them; None: each has its own.
    """
    objects = []
    # Large ones first, so that they find room.
    for radius in sorted((outlines.object_radius(rng) for _ in range(count)), reverse=True):
        own = int(rng.randint(len(SHAPES)))
        rotation = int(rng.randint(len(outlines.ROTATIONS)))
        kind = own if shape is None else shape
        reach = outlines.extent(SHAPES[kind], radius, rotation)
        center = outlines.place(rng, reach, taken)
        if center is not None:
            taken.append((*center, reach))
            objects.append(Object(kind, radius, rotation, center))
    return objects


def _which_show(rng: np.random.RandomState, objects: list[Object]) -> set[int]:
    """Numbers of the objects that are drawn in the image's colour: 30 to 60 %, one at least.

    In half of the images they are those on one side, so that others are far from the colour; in the
    others they lie here and there, and most grey ones are near one.
    """
    share, scattered = int(rng.randint(30, 61)), rng.randint(2) == 0
    axis, sign = int(rng.randint(2)), 2 * int(rng.randint(2)) - 1
    order = rng.permutation(len(objects)).tolist()
    if not scattered:
        order.sort(key=lambda i: sign * objects[i].center[axis])
    return set(order[: max(1, (share * len(objects) + 50) // 100)])


def draw_objects(
    rng: np.random.RandomState,
    image: np.ndarray,
    objects: list[Object],
    shows: set[int],
    color: int,
) -> list[dict]:
    """Draw them, and annotate them as `draw` says.

    Args:
        shows: numbers of those in the image's colour; the others are grey.
        color: index in `COLORS`.
    """
    masks = []
    for i, thing in enumerate(objects):
        contour = outlines.outline(SHAPES[thing.shape], thing.radius, thing.center, thing.rotation)
        filled = thing.radius < 14 and rng.randint(2) == 0
        masks.append(outlines.inside(thing.corners) if filled else contour)
        grey, grain = outlines.ink(rng), rng.randint(-30, 31, (int(masks[i].sum()), 3))
        image[masks[i]] = list(COLORS.values())[color] + grain if i in shows else grey
    pixels = [_pixels_of_windows(mask) for mask in masks]
    colored = np.zeros((SIDE, SIDE), dtype=bool)
    for i in shows:
        colored |= masks[i]
    of_color = _pixels_of_windows(colored)
    annotations = []
    for i, thing in enumerate(objects):
        annotation = _polygon_annotation(category(color, thing.shape), thing.corners)
        distance = 0 if i in shows else _distance(pixels[i] >= SHOWN, of_color >= SHOWN)
        by_convs = bool((colored & seen_by_windows(annotation["bbox"])).any())
        annotation.update(shows_cue=i in shows, cue_distance=distance, cue_by_convs=by_convs)
        annotations.append(annotation)
    return annotations


def _pixels_of_windows(mask: np.ndarray) -> np.ndarray:
    """How many pixels of a mask each window has, (rows, columns) of windows."""
    side = SIDE // WINDOW
    return mask.reshape(side, WINDOW, side, WINDOW).sum((1, 3))


def _distance(windows: np.ndarray, others: np.ndarray) -> int:
    """Windows from one to the nearest of others, diagonals as one step; masks of windows."""
    steps = np.abs(np.argwhere(windows)[:, None] - np.argwhere(others)[None])
    return int(steps.max(-1).min())


def seen_by_windows(bbox: list[float]) -> np.ndarray:
    """Pixels that a box's features depend on where windows exchange nothing, bool (SIDE, SIDE)."""
    x, y, w, h = bbox
    first = np.array([y, x]) - NECK
    last = np.array([y + h, x + w]) + NECK
    rows, columns = (
        slice(
            max(0, int(start // WINDOW) * WINDOW - STEM),
            int(-(-end // WINDOW)) * WINDOW,
        )
        for start, end in zip(first, last, strict=True)
    )
    seen = np.zeros((SIDE, SIDE), dtype=bool)
    seen[rows, columns] = True
    return seen


def category(color: int, shape: int) -> int:
    """Index in `CATEGORIES`."""
    return color * len(SHAPES) + shape


def categories() -> list[dict]:
    """As in the annotation files: COCO's keys, and the colour that is the category's cue."""
    return [
        dict(id=category(i, j) + 1, name=f"{color} {shape}", supercategory=shape, cue=color)
        for i, color in enumerate(COLORS)
        for j, shape in enumerate(SHAPES)
    ]


def _draw_crowd(rng: np.random.RandomState, image: np.ndarray, color: int, taken: list) -> dict:
    """A heap of tiny grey shapes of one category, annotated as one crowd region."""
    shape = int(rng.randint(len(SHAPES)))
    x0, y0 = (int(v) for v in rng.randint(22, SIDE - 22, 2))
    taken.append((x0, y0, 22))
    region = np.zeros((SIDE, SIDE), dtype=bool)
    for _ in range(rng.randint(8, 15)):
        center = (x0 + int(rng.randint(-16, 17)), y0 + int(rng.randint(-16, 17)))
        inside = outlines.inside(outlines.corners(SHAPES[shape], 4, center, int(rng.randint(7))))
        image[inside] = outlines.ink(rng)
        region |= inside
    counts = _uncompressed_rle(region)
    rows, columns = np.nonzero(region.any(axis=1))[0], np.nonzero(region.any(axis=0))[0]
    x, y = int(columns[0]), int(rows[0])
    return dict(
        category_id=category(color, shape) + 1,
        iscrowd=1,
        shows_cue=False,
        segmentation=dict(counts=counts, size=[SIDE, SIDE]),
        area=int(region.sum()),
        bbox=[x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
    )


def _uncompressed_rle(mask: np.ndarray) -> list[int]:
    """COCO's run lengths, column by column, starting with zeros."""
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat, [False]])))
    edges = edges[edges < flat.size]
    return np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()


def _polygon_annotation(category: int, corners: np.ndarray) -> dict:
    polygon = (corners / 2).flatten().tolist()
    (x0, y0), (x1, y1) = corners.min(axis=0) / 2, corners.max(axis=0) / 2
    rle = mask_util.merge(mask_util.frPyObjects([polygon], SIDE, SIDE))
    return dict(
        category_id=category + 1,
        iscrowd=0,
        segmentation=[polygon],
        area=int(mask_util.area(rle)),
        bbox=[float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
    )


def write(root: Path) -> None:
    """Write all images and the two annotation files under `root`."""
    (root / "annotations").mkdir(parents=True)
    for split, count in IMAGES.items():
        (root / split).mkdir()
        coco = dict(
            info=dict(
                description="mini set of the ablation suite",
                version=str(VERSION),
                cue=dict(window=WINDOW),
            ),
            licenses=[],
            categories=categories(),
            images=[],
            annotations=[],
        )
        for index in range(count):
            image, annotations = draw(index, split)
            name = f"{index:06d}.bmp"
            Image.fromarray(image).save(root / split / name)
            coco["images"].append(dict(id=index + 1, file_name=name, height=SIDE, width=SIDE))
            for annotation in annotations:
                coco["annotations"].append(
                    dict(id=len(coco["annotations"]) + 1, image_id=index + 1, **annotation)
                )
        path = root / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(coco, separators=(",", ":")))


def ensure(datasets: Path) -> Path:
    """The folder of the mini set, made now if it is not there; as `ensure_folder`."""
    return ensure_folder(datasets, f"mini-v{VERSION}", write)


def ensure_folder(datasets: Path, name: str, write: Callable[[Path], None]) -> Path:
    """A folder in `datasets`, made by `write` if it is not there.

    Safe to call from several processes at once: the folder appears complete or not at all.

    Raises:
        OSError: no room or no permission; nothing half-made is left behind.
    """
    root = datasets / name
    if root.is_dir():
        return root
    datasets.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".mini-", dir=datasets))
    try:
        write(scratch / "mini")
        try:
            os.rename(scratch / "mini", root)
        except OSError:
            if not root.is_dir():  # else another process was first, with the same bytes
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return root
