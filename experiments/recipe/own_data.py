"""A config fitted to the data that it is to read, which may be a set of the user's own."""

import copy
from typing import TYPE_CHECKING

from detectron2.config import LazyCall
from detectron2.data.transforms import ResizeShortestEdge
from omegaconf import DictConfig

from .config import class_name, set_length

if TYPE_CHECKING:
    from ..data.catalog import Data


def fitted(cfg: DictConfig, data: "Data") -> DictConfig:
    """A copy of a config that reads these data: for as many iterations as its epochs of them are;
    if they are the user's own, images of any size, and boxes only where there are no masks."""
    cfg = copy.deepcopy(cfg)
    set_length(cfg, data.images[0])
    if data.name:
        take_any_size(cfg)
        if not data.has_masks:
            leave_out_masks(cfg)
    return cfg


def take_any_size(cfg: DictConfig) -> None:
    """Where a config reads images as they are, of a set of one size, make it resize them to
    `dataloader.image_size` on the longer side, which the backbone pads to a square; and let none
    stand on its head in training, as those of the mini set may."""
    side = "${dataloader.image_size}"
    for mapper in (cfg.dataloader.train.mapper, cfg.dataloader.test.mapper):
        if not any(class_name(words).startswith("Resize") for words in mapper.augmentations):
            upright = [words for words in mapper.augmentations if not words.get("vertical")]
            resize = LazyCall(ResizeShortestEdge)(short_edge_length=side, max_size=side)
            mapper.augmentations = [*upright, resize]


def leave_out_masks(cfg: DictConfig) -> None:
    """Make Mask R-CNN, or its cascade, one of boxes only, Faster R-CNN; RetinaNet is."""
    cfg.dataloader.train.mapper.update(use_instance_mask=False, recompute_boxes=False)
    for part in ("mask_in_features", "mask_pooler", "mask_head"):
        cfg.model.get("roi_heads", {}).pop(part, None)


def sizing(cfg: DictConfig, sides: tuple[int, int]) -> str:
    """What a config does to the size of images, in words.

    Args:
        sides: the shortest and the longest of the images, in pixels.
    """
    side = cfg.dataloader.image_size
    words = "as they are" if sides == (side, side) else f"resized to {side} px on the longer side"
    if any(class_name(a) == "ResizeScale" for a in cfg.dataloader.train.mapper.augmentations):
        words += f", in training by large-scale jitter into a crop of {side} x {side} px"
    return words
