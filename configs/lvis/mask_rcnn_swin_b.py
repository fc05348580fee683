"""Mask R-CNN, Swin-B, LVIS v1, IN-21K supervised, 50 epochs.

The recipe of detectron2's released Cascade Mask R-CNN; the paper plots its AP only (Figure 4).
"""

from configs.common.lvis import lvis

from ..coco.mask_rcnn_swin_b import (
    dataloader,
    model,
    optimizer,
    param_groups,
    schedule,
    test,
    train,
)
from ..common.train import LVIS, iterations

lvis(model, dataloader)
train.max_iter = iterations(50, LVIS)
