"""From COCO to LVIS v1: what the released LVIS configs of detectron2's ViTDet change.

Import it as `configs.common.lvis`: a run's config.yaml names `equal_weights` by where it is found.
"""

from collections.abc import Callable

import torch
from detectron2.config import LazyCall as L
from omegaconf import DictConfig


def equal_weights(num_classes: int) -> Callable[[], torch.Tensor]:
    """Weights (num_classes,) of the federated loss before training puts in those of its data."""
    return lambda: torch.ones(num_classes)


def lvis(model: DictConfig, dataloader: DictConfig) -> None:
    """Repeat-factor sampling, federated loss over sigmoids, 300 detections per image."""
    dataloader.train.update(dataset="lvis_v1_train", repeat_threshold=0.001)
    dataloader.test.dataset = "lvis_v1_val"
    heads = model.roi_heads
    heads.num_classes = 1203
    for predictor in heads.get("box_predictors") or [heads.box_predictor]:
        predictor.update(
            test_score_thresh=0.02,
            test_topk_per_image=300,
            use_sigmoid_ce=True,
            use_fed_loss=True,
            get_fed_loss_cls_weights=L(equal_weights)(num_classes="${..num_classes}"),
            fed_loss_num_classes=50,
        )
