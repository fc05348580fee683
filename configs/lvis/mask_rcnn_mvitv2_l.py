"""Mask R-CNN, MViTv2-L, LVIS v1, IN-21K supervised, 50 epochs.

The recipe of detectron2's released Cascade Mask R-CNN; the paper plots its AP only (Figure 4).
"""

from configs.common.lvis import lvis

from ..coco.mask_rcnn_mvitv2_l import (
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
optimizer.lr = 4e-5
train.max_iter = iterations(50, LVIS)
