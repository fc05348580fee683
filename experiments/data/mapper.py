"""detectron2's `DatasetMapper`, faster: the same tensors to the bit from the same random draws.

Where that one's time goes, beside decoding: pixels that a crop throws away, copies between PIL and
numpy, and small calls for each polygon. Here flips, resizes and crops stay in PIL's memory, little
more of an enlarged image is computed than its crop, and all polygons of an image go through each
step together.
"""

import copy
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import shapely
import torch
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, PolygonMasks
from omegaconf import ListConfig, OmegaConf
from PIL import Image

from ..errors import UserError
from . import images

_FLIPS = {
    T.HFlipTransform: Image.Transpose.FLIP_LEFT_RIGHT,
    T.VFlipTransform: Image.Transpose.FLIP_TOP_BOTTOM,
}
# What the augmentations below draw, and PIL does; on points each is a function of the point alone,
# but that a crop cuts polygons.
_IN_PIL = {*_FLIPS, T.NoOpTransform, T.ResizeTransform, T.CropTransform}
_BITS = 22  # after the binary point, in Pillow's weights
_ROWS = 64  # that stay in a core's cache while they are computed
_BY_SIZE = {T.RandomFlip, T.Resize, T.ResizeShortestEdge, T.ResizeScale, T.FixedSizeCrop}

# glibc hands the memory of one image back to the system and asks for it again for the next, a third
# of the time, until it has seen a large piece freed: from then on it keeps up to twice as much
# (mallopt(3), M_MMAP_THRESHOLD).
np.empty(30 << 20, np.uint8)


class Mapper(DatasetMapper):
    """From a dataset dict to what a detector takes, with the words and the output of its base.

    It differs where that one fails: an image that a resize would make vanish keeps a row or a
    column of pixels, one with nothing but crowds gets no instances, and 16-bit greyscale is read
    right. Keypoints, proposals, semantic segmentation and other formats than RGB are left to it.

    Raises:
        UserError: the file cannot be read, or the annotations give the image another size.
    """

    def __init__(self, *args, **words):
        super().__init__(*args, **words)
        # Lists in a config are slow to compute with.
        for augmentation in self.augmentations.augs:
            for name, value in vars(augmentation).items():
                if isinstance(value, ListConfig):
                    setattr(augmentation, name, OmegaConf.to_object(value))

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        left = self.use_keypoint or self.proposal_topk is not None or self.image_format != "RGB"
        if left or "sem_seg_file_name" in dataset_dict:
            return super().__call__(dataset_dict)
        example = {k: copy.deepcopy(v) for k, v in dataset_dict.items() if k != "annotations"}
        image = images.load(example["file_name"])
        try:
            utils.check_image_size(example, _blank(image.size))
        except utils.SizeMismatchError as error:
            raise UserError(
                f"{example['file_name']} has {image.width} x {image.height} pixels, annotations "
                f"say {example['width']} x {example['height']}: correct them, or replace the file"
            ) from error
        example["image"], transforms = self._augmented(image)
        if self.is_train and "annotations" in dataset_dict:
            example["annotations"] = dataset_dict["annotations"]
            self._transform_annotations(example, transforms, tuple(example["image"].shape[1:]))
        return example

    def _augmented(self, image: Image.Image) -> tuple[torch.Tensor, T.TransformList]:
        """uint8 (3, H, W), and what was done to the image: in PIL, while its size says what."""
        augmentations = self.augmentations.augs
        drawn, size = [], image.size
        first = list(itertools.takewhile(_is_by_size, augmentations))
        for augmentation in first:
            for transform in T.TransformList([augmentation.get_transform(_blank(size))]).transforms:
                drawn.append(_not_vanishing(transform))
                size = _size_after(drawn[-1], size)
        if len(first) == len(augmentations):
            return torch.from_numpy(_transformed(image, drawn)), T.TransformList(drawn)
        rest = T.AugInput(np.asarray(_applied(image, drawn)))
        transforms = T.AugmentationList(augmentations[len(first) :])(rest)
        pixels = np.ascontiguousarray(rest.image.transpose(2, 0, 1))
        return torch.as_tensor(pixels), T.TransformList([*drawn, transforms])

    def _transform_annotations(
        self, dataset_dict: dict, transforms: T.TransformList, image_shape: tuple[int, int]
    ) -> None:
        keys = {"bbox", "bbox_mode", "category_id", *["segmentation"] * self.use_instance_mask}
        objects = [
            {key: annotation[key] for key in keys & annotation.keys()}
            for annotation in dataset_dict.pop("annotations")
            if annotation.get("iscrowd", 0) == 0
        ]
        if all(type(t) in _IN_PIL for t in transforms.transforms):
            objects = self._together(objects, transforms, image_shape)
        else:
            objects = [
                utils.transform_instance_annotations(copy.deepcopy(o), transforms, image_shape)
                for o in objects
            ]
        instances = utils.annotations_to_instances(objects, image_shape, self.instance_mask_format)
        if self.recompute_boxes and objects:
            masks = instances.gt_masks
            polygons = isinstance(masks, PolygonMasks)
            instances.gt_boxes = _bounding_boxes(masks) if polygons else masks.get_bounding_boxes()
        dataset_dict["instances"] = utils.filter_empty_instances(instances)

    def _together(
        self, objects: list[dict], transforms: T.TransformList, image_shape: tuple[int, int]
    ) -> list[dict]:
        """All objects of an image as `utils.transform_instance_annotations` gives each."""
        if self.recompute_boxes:
            boxes = np.zeros((len(objects), 4))  # not looked at
        else:
            boxes = _boxes(objects, transforms, image_shape)
        segmentations = [o["segmentation"] for o in objects if "segmentation" in o]
        polygons = iter(_polygons([s for s in segmentations if isinstance(s, list)], transforms))
        moved = []
        for o, box in zip(objects, boxes, strict=True):
            new = dict(bbox=box, bbox_mode=BoxMode.XYXY_ABS, category_id=o["category_id"])
            if isinstance(o.get("segmentation"), list):
                new["segmentation"] = next(polygons)
            elif "segmentation" in o:
                run_lengths = utils.transform_instance_annotations({**o}, transforms, image_shape)
                new["segmentation"] = run_lengths["segmentation"]
            moved.append(new)
        return moved


def _is_by_size(augmentation: T.Augmentation) -> bool:
    """Whether it looks at nothing but the image's size, and draws what PIL does."""
    pads = isinstance(augmentation, T.FixedSizeCrop) and augmentation.pad
    return type(augmentation) in _BY_SIZE and not pads


def _blank(size: tuple[int, int]) -> np.ndarray:
    """Stands in for an image of (width, height) where only its shape is asked for; no memory."""
    return np.broadcast_to(np.uint8(0), (*size[::-1], 3))


def _not_vanishing(transform: T.Transform) -> T.Transform:
    if type(transform) is T.ResizeTransform and 0 in (transform.new_h, transform.new_w):
        h, w = max(transform.new_h, 1), max(transform.new_w, 1)
        return T.ResizeTransform(transform.h, transform.w, h, w, transform.interp)
    return transform


def _size_after(transform: T.Transform, size: tuple[int, int]) -> tuple[int, int]:
    if type(transform) is T.ResizeTransform:
        return transform.new_w, transform.new_h
    if type(transform) is T.CropTransform:
        x0, y0, x1, y1 = _window(transform, size)
        return x1 - x0, y1 - y0
    return size


def _window(crop: T.CropTransform, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what a crop leaves of an image of (width, height)."""
    x0, y0 = int(crop.x0), int(crop.y0)
    return x0, y0, min(x0 + crop.w, size[0]), min(y0 + crop.h, size[1])


def _applied(image: Image.Image, transforms: Iterable[T.Transform]) -> Image.Image:
    for transform in transforms:
        if type(transform) in _FLIPS:
            image = image.transpose(_FLIPS[type(transform)])
        elif type(transform) is T.ResizeTransform:
            image = image.resize((transform.new_w, transform.new_h), transform.interp)
        elif type(transform) is T.CropTransform:
            image = _cropped(image, _window(transform, image.size))
    return image


def _cropped(image: Image.Image, window: tuple[int, int, int, int]) -> Image.Image:
    return image if window == (0, 0, *image.size) else image.crop(window)  # crop copies


def _planes(image: Image.Image) -> np.ndarray:
    """uint8 (3, H, W)."""
    # PIL keeps RGB in four bytes a pixel; to hand them out as they are is faster than as three.
    pixels = np.frombuffer(image.tobytes("raw", "RGBX"), np.uint8)
    pixels = pixels.reshape(image.height, image.width, 4).transpose(2, 0, 1)[:3]
    return np.ascontiguousarray(pixels)


def _transformed(image: Image.Image, transforms: list[T.Transform]) -> np.ndarray:
    """uint8 (3, H, W), as `_applied` gives it: if it ends with a resize, or that and a crop, in
    less time."""
    before = [t for t in transforms if type(t) is not T.NoOpTransform]
    last = []
    for kind in (T.CropTransform, T.ResizeTransform):
        if before and type(before[-1]) is kind:
            last.insert(0, before.pop())
    image = _applied(image, before)
    if last and type(last[0]) is T.ResizeTransform:
        whole = (last[0].new_w, last[0].new_h)
        window = _window(last[1], whole) if len(last) == 2 else (0, 0, *whole)
        enlarges = last[0].new_h >= image.height
        if enlarges and last[0].interp == Image.Resampling.BILINEAR:
            return _enlarged(image, whole, window)
    return _planes(_applied(image, last))


def _enlarged(
    image: Image.Image, size: tuple[int, int], window: tuple[int, int, int, int]
) -> np.ndarray:
    """uint8 (3, H, W): the window of the image after PIL's bilinear resize to a larger height.

    PIL makes the new columns, rounds them to 8 bits, and makes the new rows of these, each as
    (w0 r0 + w1 r1 + 2^21) >> 22 of two adjacent ones (Pillow, src/libImaging/Resample.c). The first
    it does here too, of the rows that are needed; the second is done for the window alone.

    Args:
        size: width and height to resize to.
        window: left, top, right, bottom of what is wanted of it.
    """
    x0, y0, x1, y1 = window
    first, weight = _row_weights(image.height, size[1], y0, y1)
    top, bottom = first[0], min(first[-1] + 2, image.height)
    rows = _cropped(image, (0, top, image.width, bottom))
    rows = rows.resize((size[0], bottom - top), Image.Resampling.BILINEAR)
    base = _planes(_cropped(rows, (x0, 0, x1, bottom - top))).astype(np.int32)
    step = np.zeros_like(base)  # to the row below; that of the last row has no weight
    np.subtract(base[:, 1:], base[:, :-1], out=step[:, :-1])
    # As w0 + w1 = 2^22, the above is (2^22 r0 + w1 (r1 - r0) + 2^21) >> 22.
    base <<= _BITS
    base += 1 << (_BITS - 1)
    result = np.empty((3, y1 - y0, x1 - x0), np.uint8)
    for plane, start in itertools.product(range(3), range(0, y1 - y0, _ROWS)):
        some = slice(start, start + _ROWS)
        moved = step[plane].take(first[some] - top, 0)
        moved *= weight[some, None]
        moved += base[plane].take(first[some] - top, 0)
        moved >>= _BITS
        result[plane, some] = moved
    return result


def _row_weights(height: int, new_height: int, y0: int, y1: int) -> tuple[np.ndarray, np.ndarray]:
    """For the new rows y0 to y1 - 1: the first of the two rows that each is made of, int64, and the
    weight of the second, int32, in units of 2^-22; 0 if the first is the last one.

    To the bit those of Pillow, which computes them in float64 and rounds each. The weights of both
    add up to 2^22: for one of them to lie between two integers, new_height had to be a multiple of
    2^22.
    """
    center = (np.arange(y0, y1) + 0.5) * (height / new_height)
    first = (center - 0.5).astype(int)
    second = np.minimum((center + 1.5).astype(int), height) - 1
    weights = np.stack([1 - np.abs(first - center + 0.5), 1 - np.abs(second - center + 0.5)])
    weights[1, first == second] = 0
    weights = (0.5 + weights / weights.sum(0) * 2**_BITS).astype(np.int32)
    return first, weights[1]


def _by_dtype(
    function: Callable[[np.ndarray], np.ndarray], arrays: list[np.ndarray]
) -> list[np.ndarray]:
    """The function of each array, called with the rows of many: all that have the same dtype.

    Coordinates that are whole numbers in the annotations stay so in detectron2's transforms.
    """
    result = list(arrays)
    for dtype in {array.dtype for array in arrays}:
        where = [i for i, array in enumerate(arrays) if array.dtype == dtype]
        rows = function(np.concatenate([arrays[i] for i in where]))
        ends = np.cumsum([len(arrays[i]) for i in where]).tolist()
        for i, start, end in zip(where, [0, *ends], ends, strict=False):
            result[i] = rows[start:end]
    return result


def _boxes(
    objects: list[dict], transforms: T.TransformList, image_shape: tuple[int, int]
) -> list[np.ndarray]:
    """(x0, y0, x1, y1) of each object, inside the image."""
    boxes = [
        np.array([BoxMode.convert(o["bbox"], o["bbox_mode"], BoxMode.XYXY_ABS)]) for o in objects
    ]
    largest = [*image_shape, *image_shape][::-1]
    return [
        np.minimum(box[0].clip(min=0), largest) for box in _by_dtype(transforms.apply_box, boxes)
    ]


def _polygons(objects: list[list], transforms: T.TransformList) -> list[list[np.ndarray]]:
    """Of each object its polygons, [(2 N,), ...]; more, fewer or none where a crop cuts them."""
    polygons = [np.asarray(p).reshape(-1, 2) for o in objects for p in o]
    owners = [i for i, o in enumerate(objects) for _ in o]
    for transform in transforms.transforms:
        if type(transform) is T.CropTransform and polygons:
            polygons, kept = _cut(polygons, transform)
            owners = [owners[i] for i in kept]
        polygons = _by_dtype(transform.apply_coords, polygons)
    moved = [[] for _ in objects]
    for i, polygon in zip(owners, polygons, strict=True):
        moved[i].append(polygon.reshape(-1))
    return moved


def _cut(polygons: list[np.ndarray], crop: T.CropTransform) -> tuple[list[np.ndarray], np.ndarray]:
    """What lies in the crop of polygons, [(N, 2), ...], and which one each piece is of.

    The calls of fvcore's `CropTransform.apply_polygons`, each for all polygons.
    """
    window = shapely.box(crop.x0, crop.y0, crop.x0 + crop.w, crop.y0 + crop.h)
    lengths = [len(polygon) for polygon in polygons]
    index = np.repeat(np.arange(len(polygons)), lengths)
    rings = shapely.linearrings(np.concatenate(polygons).astype(float), indices=index)
    whole = shapely.buffer(shapely.polygons(rings), 0.0)
    kept = np.flatnonzero(shapely.is_valid(whole))
    cut = shapely.intersection(whole[kept], shapely.buffer(window, 0.0))
    some = ~shapely.is_empty(cut)
    parts, part_of = shapely.get_parts(cut[some], return_index=True)
    # A crop can leave a line or a point of a polygon.
    good = (shapely.get_type_id(parts) == shapely.GeometryType.POLYGON) & shapely.is_valid(parts)
    outlines = shapely.get_exterior_ring(parts[good])
    points = shapely.get_coordinates(outlines)
    ends = np.cumsum(shapely.get_num_points(outlines)).tolist()
    # A ring ends where it starts.
    pieces = [points[a : b - 1] for a, b in zip([0, *ends], ends, strict=False)]
    return pieces, kept[some][part_of[good]]


def _bounding_boxes(masks: PolygonMasks) -> Boxes:
    """As `PolygonMasks.get_bounding_boxes`, of all at once."""
    boxes = np.array([[np.inf, np.inf, 0, 0]] * len(masks), np.float32).reshape(-1, 4)
    some = [i for i, polygons in enumerate(masks.polygons) if polygons]
    if some:
        points = np.concatenate([p for i in some for p in masks.polygons[i]])
        points = points.reshape(-1, 2).astype(np.float32)
        lengths = [sum(map(len, masks.polygons[i])) // 2 for i in some]
        starts = np.cumsum([0, *lengths[:-1]])
        boxes[some, :2] = np.minimum.reduceat(points, starts)
        boxes[some, 2:] = np.maximum.reduceat(points, starts).clip(min=0)
    return Boxes(torch.from_numpy(boxes))
