"""detectron2's `DatasetMapper`, where that one fails or says less."""

import copy
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T

from ..errors import UserError
from . import images


class _Input(T.AugInput):
    """Of which a resize leaves a row and a column."""

    def transform(self, tfm: T.Transform) -> None:
        if isinstance(tfm, T.ResizeTransform):
            tfm.new_h, tfm.new_w = max(tfm.new_h, 1), max(tfm.new_w, 1)
        super().transform(tfm)
        if 1 in self.image.shape[:2]:  # flipped, it keeps a step backwards that torch does not take
            self.image = self.image.copy()


class _Blank(_Input):
    """An image whose pixels nobody looks at: resizing gives it another size, nothing else."""

    def transform(self, tfm: T.Transform) -> None:
        if isinstance(tfm, T.ResizeTransform):
            tfm.new_h, tfm.new_w = max(tfm.new_h, 1), max(tfm.new_w, 1)
            self.image = _blank(tfm.new_h, tfm.new_w)
        else:
            super().transform(tfm)


def _blank(height: int, width: int) -> np.ndarray:
    return np.broadcast_to(np.uint8(0), (height, width, 3))


class Mapper(DatasetMapper):
    """From a dataset dict to what a detector takes, with the words and the output of its base.

    It differs where that one fails: an image that a resize would make vanish keeps a row or a
    column of pixels, one with nothing but crowds gets no instances, and 16-bit greyscale is read
    right. Proposals, semantic segmentation and other formats than RGB are left to it.

    Where `reads` is set to False, images are blank, of the right size; the rest is the same, for
    augmentations that do not choose by what they see.

    Raises:
        UserError: the file cannot be read, or the annotations give the image another size.
    """

    reads = True

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        left = self.proposal_topk is not None or self.image_format != "RGB"
        if left or "sem_seg_file_name" in dataset_dict:
            return super().__call__(dataset_dict)
        example = copy.deepcopy(dataset_dict)
        if self.reads:
            pixels = images.read(example["file_name"])
        else:
            pixels = _blank(example["height"], example["width"])
        try:
            utils.check_image_size(example, pixels)
        except utils.SizeMismatchError as error:
            height, width = pixels.shape[:2]
            raise UserError(
                f"{example['file_name']} has {width} x {height} pixels, annotations "
                f"say {example['width']} x {example['height']}: correct them, or replace the file"
            ) from error
        seen = _Input(pixels) if self.reads else _Blank(pixels)
        transforms = self.augmentations(seen)
        example["image"] = torch.from_numpy(seen.image.transpose(2, 0, 1).copy())
        if not self.is_train:
            example.pop("annotations", None)
        elif "annotations" in example:
            self._transform_annotations(example, transforms, seen.image.shape[:2])
        return example

    def _transform_annotations(
        self, dataset_dict: dict, transforms: T.TransformList, image_shape: tuple[int, int]
    ) -> None:
        if any(not annotation.get("iscrowd") for annotation in dataset_dict["annotations"]):
            super()._transform_annotations(dataset_dict, transforms, image_shape)
        else:  # no masks whose boxes could be recomputed
            del dataset_dict["annotations"]
            dataset_dict["instances"] = utils.annotations_to_instances([], image_shape)
