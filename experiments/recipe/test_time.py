"""Test-time options of the system-level comparison (arXiv:2203.16527, Table 6): soft-NMS and
multi-scale testing.

detectron2 has no way in for soft-NMS, nor for images larger than a backbone's square padding: the
functions that decide are globals of its modules. `applied` exchanges those globals while inference
runs, for the whole process, and puts them back.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import DatasetMapperTTA, GeneralizedRCNN, GeneralizedRCNNWithTTA
from detectron2.modeling.meta_arch import RetinaNet, dense_detector, rcnn, retinanet
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, fast_rcnn
from detectron2.structures import ImageList
from fvcore.transforms import TransformList
from omegaconf import DictConfig, ListConfig
from torch import Tensor, nn

from ..data import images
from ..errors import UserError, unknown

SOFT_NMS = ("none", "linear", "gaussian")
# Box heads, cascades and the merge of test-time augmentation select final boxes in the first
# module, RetinaNet in the second. The RPN's NMS lies in another.
_SELECT_FINAL_BOXES = (fast_rcnn, retinanet)


def check(test: DictConfig) -> None:
    """Check the words of `cfg.test`, described at `applied`.

    Raises:
        UserError: naming the word, its value and what is allowed.
    """
    if test.soft_nms not in SOFT_NMS:
        raise unknown("test.soft_nms", str(test.soft_nms), SOFT_NMS)
    rules = [
        ("tta_sizes", _are_sizes, "a list of whole numbers of pixels above 0, as in [800,1024]"),
        ("tta_max_size", _is_size, "a whole number of pixels above 0"),
        ("tta_flip", lambda value: isinstance(value, bool), "True or False"),
    ]
    if test.soft_nms != "none":
        rules += [
            ("soft_nms_iou", _is_fraction, "a number from 0 to 1"),
            ("soft_nms_sigma", lambda value: _is_number(value) and value > 0, "a number above 0"),
            ("soft_nms_min_score", _is_fraction, "a number from 0 to 1"),
        ]
    for word, fits, allowed in rules:
        if not fits(test.get(word)):
            raise UserError(f"test.{word}={test.get(word)!r} does not fit: give {allowed}")
    if max(test.tta_sizes, default=0) > test.tta_max_size:
        raise UserError(
            f"test.tta_sizes={test.tta_sizes} has a short edge above the longest allowed: "
            f"raise test.tta_max_size={test.tta_max_size}"
        )


@contextmanager
def applied(model: nn.Module, test: DictConfig) -> Iterator[nn.Module]:
    """The detector to run inference with, as `test` asks; `model` itself if it asks for no TTA.

    Meanwhile an image larger than the backbone's square padding is seen whole: it is padded to a
    square of its own longest edge.

    Args:
        model: a detector of detectron2's. Its own score threshold, before NMS, and its number of
            boxes per image, after it, hold as ever.
        test: these words:
            soft_nms: what hard NMS of final boxes gives way to: "linear", "gaussian", or "none".
            soft_nms_iou: IoU from which "linear" lowers scores (0.3 published).
            soft_nms_sigma: of "gaussian", see there (0.5 published).
            soft_nms_min_score: score that a box must still have after soft-NMS (0.001 in the
                authors' code).
            tta_sizes: short edges, in pixels, to test each image at, in place of the size that the
                data mapper gives it; none for no test-time augmentation.
            tta_max_size: longest edge, in pixels, at any of those sizes.
            tta_flip: whether to test each size flipped, too.

    Raises:
        UserError: a word does not fit, or the model cannot do what it says.
    """
    check(test)
    if test.soft_nms != "none" and not any(
        isinstance(m, FastRCNNOutputLayers | RetinaNet) for m in model.modules()
    ):
        raise UserError(
            f"test.soft_nms={test.soft_nms!r} works for Mask R-CNN, its cascade, and RetinaNet, "
            f"not for {type(model).__name__}: set it to none"
        )
    if test.tta_sizes and not isinstance(model, GeneralizedRCNN):
        raise UserError(
            "test.tta_sizes work for Mask R-CNN and its cascade, "
            f"not for {type(model).__name__}: set them to []"
        )
    with _final_nms(test), _exchanged("ImageList", _LargerSquare, rcnn, dense_detector):
        yield _MultiScale(model, test) if test.tta_sizes else model


def linear(iou: Tensor, threshold: float = 0.3) -> Tensor:
    """What soft-NMS multiplies a score with, by the IoU with a better box (arXiv:1704.04503,
    section 4): 1 - IoU from the threshold on, 1 below."""
    return torch.where(iou < threshold, 1.0, 1.0 - iou)


def gaussian(iou: Tensor, sigma: float = 0.5) -> Tensor:
    """The same without a step at a threshold: exp(-IoU^2 / sigma)."""
    return torch.exp(-iou.square() / sigma)


@torch.no_grad()
def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    factor: Callable[[Tensor], Tensor],
    min_score: float = 0.001,
) -> tuple[Tensor, Tensor]:
    """Soft-NMS within each class (arXiv:1704.04503): the best box lowers the scores of the others,
    more so where they overlap, then the best of those does, and so on.

    Args:
        boxes: (N, 4) of (x0, y0, x1, y1).
        scores: (N,), none below 0.
        classes: (N,), int64.
        factor: `linear` or `gaussian`: from IoU to what a score is multiplied with.
        min_score: boxes that end below it are dropped.

    Returns:
        The new scores, (N,), and the indexes of the boxes that are kept, best first.
    """
    if not len(scores):
        return scores, classes
    # All classes go step by step together, K rows of N places, filled up with empty boxes.
    _, row, counts = classes.unique(return_inverse=True, return_counts=True)
    order = row.argsort(stable=True)
    column = torch.empty_like(order)
    starts = counts.cumsum(0) - counts
    column[order] = torch.arange(len(order), device=order.device) - starts[row[order]]
    steps = int(counts.max())
    boxes_4KN = torch.zeros(4, len(counts), steps, device=boxes.device)
    boxes_4KN[:, row, column] = boxes.float().T
    scores_KN = torch.full_like(boxes_4KN[0], -1)
    scores_KN[row, column] = scores.float()
    waits_KN = torch.ones_like(scores_KN, dtype=torch.bool)
    for _ in range(steps):
        best_K1 = scores_KN.masked_fill(~waits_KN, -torch.inf).argmax(1, keepdim=True)
        waits_KN.scatter_(1, best_K1, False)
        best_4K1 = boxes_4KN.gather(2, best_K1.expand(4, -1, -1))
        factor_KN = factor(_iou(boxes_4KN, best_4K1))
        scores_KN = torch.where(waits_KN, scores_KN * factor_KN, scores_KN)
    new_scores = scores_KN[row, column]
    keep = new_scores.argsort(descending=True, stable=True)
    return new_scores.to(scores.dtype), keep[new_scores[keep] >= min_score]


def _iou(a_4KN: Tensor, b_4KN: Tensor) -> Tensor:
    """IoU, (K, N); 0 with an empty box, to which clipping can reduce one."""
    low, high = torch.maximum(a_4KN[:2], b_4KN[:2]), torch.minimum(a_4KN[2:], b_4KN[2:])
    both = (high - low).clamp(min=0).prod(0)
    either = (a_4KN[2:] - a_4KN[:2]).prod(0) + (b_4KN[2:] - b_4KN[:2]).prod(0) - both
    return both / either.clamp(min=1e-9)


@contextmanager
def _final_nms(test: DictConfig, rescore: bool = True) -> Iterator[None]:
    """Final boxes are selected as `test` says; without `rescore` they keep the scores they had."""
    if test.soft_nms == "none":
        yield
        return
    factor = {
        "linear": functools.partial(linear, threshold=test.soft_nms_iou),
        "gaussian": functools.partial(gaussian, sigma=test.soft_nms_sigma),
    }[test.soft_nms]

    @torch.no_grad()
    def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
        new_scores, keep = soft_nms(boxes, scores, idxs, factor, test.soft_nms_min_score)
        if rescore:
            scores.copy_(new_scores)  # detectron2 goes on with this very tensor
        return keep

    with _exchanged("batched_nms", batched_nms, *_SELECT_FINAL_BOXES):
        yield


class _LargerSquare(ImageList):
    """Pads to the backbone's square, as training does, or to a larger one that an image needs;
    detectron2 cuts such an image off, without a word."""

    @staticmethod
    def from_tensors(
        tensors: list[Tensor],
        size_divisibility: int = 0,
        pad_value: float = 0.0,
        padding_constraints: dict[str, int] | None = None,
    ) -> ImageList:
        constraints = dict(padding_constraints or {})
        if constraints.get("square_size", 0) > 0:
            edges = [edge for image in tensors for edge in image.shape[-2:]]
            constraints["square_size"] = max(constraints["square_size"], *edges)
        return ImageList.from_tensors(tensors, size_divisibility, pad_value, constraints)


class _MultiScale(GeneralizedRCNNWithTTA):
    """detectron2's test-time augmentation of a detector, with the words of `applied`."""

    def __init__(self, model: GeneralizedRCNN, test: DictConfig):
        heads = model.roi_heads
        last = [m for m in heads.modules() if isinstance(m, FastRCNNOutputLayers)][-1]
        words = dict(
            MODEL=dict(
                MASK_ON=heads.mask_on,
                KEYPOINT_ON=False,
                LOAD_PROPOSALS=False,
                ROI_HEADS=dict(NUM_CLASSES=heads.num_classes, NMS_THRESH_TEST=last.test_nms_thresh),
            ),
            TEST=dict(DETECTIONS_PER_IMAGE=last.test_topk_per_image),
        )
        mapper = DatasetMapperTTA(
            min_sizes=list(test.tta_sizes), max_size=test.tta_max_size, flip=test.tta_flip
        )
        # One image at a time: their sizes differ, and each is to be padded for itself.
        super().__init__(CfgNode(words), model, mapper, batch_size=1)
        self.test = test
        self.train(model.training)

    def __call__(self, batched_inputs: list[dict]) -> list[dict]:
        """From the image files: what the data mapper gives is resized already."""
        outputs = []
        for x in batched_inputs:
            image = torch.tensor(images.read(x["file_name"])).permute(2, 0, 1)
            outputs += super().__call__([{**x, "image": image}])
        return outputs

    def _get_augmented_boxes(
        self, augmented_inputs: list[dict], tfms: list[TransformList]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        # Soft-NMS lowers scores once, in the merge: before, it only says which boxes go there.
        with _final_nms(self.test, rescore=False):
            return super()._get_augmented_boxes(augmented_inputs, tfms)


@contextmanager
def _exchanged(name: str, value: Any, *modules: ModuleType) -> Iterator[None]:
    old = [getattr(module, name) for module in modules]
    try:
        for module in modules:
            setattr(module, name, value)
        yield
    finally:
        for module, was in zip(modules, old, strict=True):
            setattr(module, name, was)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list | ListConfig) and all(map(_is_size, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_fraction(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1
