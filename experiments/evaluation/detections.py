"""Ground truth and detections as arrays, by COCO's or LVIS's rules of what counts, and refused
where they are not of their format."""

import functools
import reprlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pycocotools import mask as masks

from ..data import annotations
from ..errors import UserError

# COCO's ranges of an object's area in pixels, both ends in: all, small, medium, large.
AREAS = np.array([(0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10)])
DETECTIONS = 100  # per image and category, those of the highest scores; COCO's limit
LVIS_DETECTIONS = 300  # per image, of all categories


class Objects:
    """The ground truth as arrays, one line per object, by image and category, in it as in the file;
    those that are ignored in a range of area are outside of it, or so marked: COCO's as crowds."""

    def __init__(self, truth: dict, kind: str, lvis: bool):
        self.lvis = lvis
        self.images = np.unique([image["id"] for image in truth["images"]])
        self.categories = np.unique([category["id"] for category in truth["categories"]])
        self.sizes = {i["id"]: [i["height"], i["width"]] for i in truth["images"]}
        if self.images.dtype.kind != "i" or self.categories.dtype.kind != "i":
            raise UserError("the ground truth's ids of images and categories are no whole numbers")
        listed = truth["annotations"]
        image, image_known = _index(self.images, [a["image_id"] for a in listed])
        category, category_known = _index(self.categories, [a["category_id"] for a in listed])
        area = np.array([a["area"] for a in listed], float)
        known = image_known & category_known & ((area > 0) | (not lvis))  # lvis drops empty ones
        order = np.lexsort((category, image))
        order = order[known[order]]
        listed = [listed[i] for i in order]
        self.image, self.category = image[order], category[order]
        self.group = self.image * len(self.categories) + self.category
        marked = np.array([bool(a.get("ignore" if lvis else "iscrowd")) for a in listed], bool)
        self.crowd = marked & (not lvis)
        self.ignored = marked[:, None] | ~in_areas(area[order])  # (N, 4)
        if kind == "box":
            self.shape = np.array([a["bbox"] for a in listed], float).reshape(-1, 4)
        else:
            self.shape = [run_lengths(a, self.sizes[a["image_id"]]) for a in listed]
        # What LVIS says of its images and categories.
        images = truth["images"] if lvis else []
        self.partly = self._listed(images, "not_exhaustive_category_ids")
        self.verified = self._listed(images, "neg_category_ids")
        self.verified[self.image, self.category] = True
        frequency = {c["id"]: c["frequency"] for c in truth["categories"]} if lvis else {}
        self.frequency = np.array([frequency[i] for i in sorted(frequency)], "U1")

    @functools.cached_property
    def mask_boxes(self) -> np.ndarray:
        """(N, 4) around the masks."""
        return masks.toBbox(self.shape)

    @functools.cached_property
    def mask_areas(self) -> np.ndarray:
        return _mask_areas(self.shape)

    def _listed(self, images: list[dict], key: str) -> np.ndarray:
        """(I, K) which categories an image has in its list of this name."""
        pairs = [(image["id"], category) for image in images for category in image[key]]
        listed = np.zeros((len(self.images), len(self.categories)), bool)
        image, _ = _index(self.images, [pair[0] for pair in pairs])
        category, known = _index(self.categories, [pair[1] for pair in pairs])
        listed[image[known], category[known]] = True
        return listed


class Detections:
    """The detections that count as arrays, one line each, by image and category, in it by falling
    score, equal ones as in the file.

    Args:
        number: of the first of them in the file, for errors.
    """

    def __init__(
        self, results: list[dict], objects: Objects, kind: str, name: str, number: int = 0
    ):
        self.objects = objects
        shape_key = "bbox" if kind == "box" else "segmentation"
        for key in ("image_id", "category_id", "score", shape_key):
            wrong = next((i for i, result in enumerate(results) if key not in result), None)
            if wrong is not None:
                raise UserError(f"{name} has no {key!r} at entry {number + wrong}")
        image = _places(results, "image_id", objects.images, name, number)
        category = _places(results, "category_id", objects.categories, name, number)
        score = _numbers(results, "score", (), name, number)
        if not ((score >= 0) & (score <= 1)).all():
            wrong = int(np.argmin((score >= 0) & (score <= 1)))
            raise UserError(
                f"{name} has score {score[wrong]} at entry {number + wrong}: it must be in 0..1"
            )
        if kind == "box":
            boxes = _numbers(results, "bbox", (4,), name, number)
            fits = np.isfinite(boxes).all(1) & (boxes[:, 2:] >= 0).all(1)
            if not fits.all():
                wrong = int(np.argmin(fits))
                raise UserError(
                    f"{name} has box {boxes[wrong].tolist()} at entry {number + wrong}: "
                    "it must be x, y, width, height, finite and not negative in size"
                )
            self.area = boxes[:, 2] * boxes[:, 3]
        else:
            for entry, result in enumerate(results, start=number):
                mask, size = result["segmentation"], objects.sizes[result["image_id"]]
                if not isinstance(mask, dict) or not isinstance(mask.get("counts"), str | bytes):
                    raise UserError(
                        f"{name} has entry {entry} with a mask that is not COCO's compressed run "
                        "lengths: encode it with pycocotools.mask"
                    )
                if mask.get("size") not in (size, tuple(size)):
                    raise UserError(
                        f"{name} has a mask of size {mask.get('size')!r} at entry {entry}: "
                        f"image {result['image_id']} has {size} (height, width)"
                    )
            self.area = _mask_areas([r["segmentation"] for r in results])

        order = np.lexsort((-score, category, image))
        image, category, score = image[order], category[order], score[order]
        group = image * len(objects.categories) + category
        shape = boxes if kind == "box" else [r["segmentation"] for r in results]
        same = (group[1:] == group[:-1]) & (score[1:] == score[:-1])
        seen = {}
        for i in np.flatnonzero(np.append(same, False) | np.insert(same, 0, False)):
            result = results[order[i]]
            form = [result.get("bbox"), result["segmentation"]["counts"] if kind == "mask" else ""]
            first = seen.setdefault((group[i], score[i], str(form)), order[i])
            if first != order[i]:
                raise UserError(
                    f"{name} has entry {number + first} twice, again as {number + order[i]}: image "
                    f"{result['image_id']}, category {result['category_id']}, score {score[i]}"
                )
        rank = _ranks(group)
        if objects.lvis:
            # The limit is of all that was found in an image, whether it counts or not.
            keep = np.zeros(len(order), bool)
            keep[np.lexsort((order, -score, image))] = _ranks(image) < LVIS_DETECTIONS
            keep &= objects.verified[image, category] & (self.area[order] > 0)
        else:
            keep = rank < DETECTIONS
        order = order[keep]
        self.image, self.category, self.score = image[keep], category[keep], score[keep]
        self.group, self.rank, self.area = group[keep], rank[keep], self.area[order]
        self.shape = shape[order] if kind == "box" else [shape[i] for i in order]


def in_areas(area: np.ndarray) -> np.ndarray:
    """(N,) to (N, 4): whether it is in each of `AREAS`."""
    return (area[:, None] >= AREAS[:, 0]) & (area[:, None] <= AREAS[:, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """For sorted values: the how manieth of its like each is, from 0."""
    return np.arange(len(values)) - np.searchsorted(values, values)


def _mask_areas(encoded: list[dict]) -> np.ndarray:
    """In pixels; in pieces, as pycocotools 2.0.11 with numpy 2 takes 255 at once."""
    pieces = [masks.area(encoded[i : i + 255]) for i in range(0, len(encoded), 255)]
    return np.concatenate([np.zeros(0), *pieces])


def _index(ids: np.ndarray, values: list) -> tuple[np.ndarray, np.ndarray]:
    """Where each value is in sorted ids, and whether it is."""
    least, most = ids[[0, -1]].tolist()
    whole = np.array([isinstance(v, int) and least <= v <= most for v in values], bool)
    numbers = [v if is_whole else ids[0] for v, is_whole in zip(values, whole, strict=True)]
    numbers = np.array(numbers, ids.dtype)
    place = np.searchsorted(ids, numbers).clip(max=len(ids) - 1)
    return place, whole & (ids[place] == numbers)


def _places(results: list[dict], key: str, ids: np.ndarray, name: str, number: int) -> np.ndarray:
    """(D,) where in `ids` the results' ids lie; the first result has this number."""
    place, known = _index(ids, [result[key] for result in results])
    if not known.all():
        wrong = int(np.argmin(known))
        raise UserError(
            f"{name} has {key.removesuffix('_id')} {results[wrong][key]!r} at entry "
            f"{number + wrong}, which its ground truth has not"
        )
    return place


def _numbers(
    results: list[dict], key: str, shape: tuple[int, ...], name: str, number: int
) -> np.ndarray:
    """(D, *shape) of an entry of the results, the first of which has this number."""
    values = [result[key] for result in results]
    numbers = _array(values)
    if numbers.shape == (len(values), *shape):
        return numbers
    if not values:
        return np.zeros((0, *shape))
    wrong = next(i for i, value in enumerate(values) if _array(value).shape != shape)
    what = f"{shape[0]} numbers" if shape else "a number"
    raise UserError(
        f"{name} has {key} {values[wrong]!r} at entry {number + wrong}: it must be {what}"
    )


def _array(values) -> np.ndarray:
    """Of numbers; of no shape that is asked for, if they are not."""
    try:
        numbers = np.array(values)
    except ValueError:  # not all as long
        return np.zeros((0, 0, 0))
    return numbers.astype(float) if numbers.dtype.kind in "iuf" else np.zeros((0, 0, 0))


def run_lengths(annotation: dict, size: Sequence[int]) -> dict:
    """An object's or detection's mask, in any of COCO's forms, as pycocotools' run lengths.

    Args:
        size: of its image, height and width.
    """
    shape = annotation["segmentation"]
    if isinstance(shape, list):
        return masks.merge(masks.frPyObjects(shape, *size))
    return masks.frPyObjects(shape, *size) if isinstance(shape["counts"], list) else shape


def read_results(path: Path) -> list[dict]:
    """What a file in COCO's result format holds.

    Raises:
        UserError: it is not there, or not of that format.
    """
    results, _ = annotations.parse(path)
    if not isinstance(results, list):
        raise UserError(f"{path} is no list of detections in COCO's format")
    wrong = next((i for i, result in enumerate(results) if not isinstance(result, dict)), None)
    if wrong is not None:
        raise UserError(
            f"{path} has {reprlib.repr(results[wrong])} at entry {wrong}: it is no detection"
        )
    for result in results:
        for key in ("image_id", "category_id"):
            if type(result.get(key)) is float:
                result[key] = annotations.whole(result[key])
    return results
