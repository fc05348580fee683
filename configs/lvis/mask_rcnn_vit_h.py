"""Mask R-CNN, ViT-H, LVIS v1, IN-1K MAE, 100 epochs.

Published: 49.1 box AP / 46.0 mask AP (detectron2's released model of this recipe). 64 GPUs, one
image each.
"""

from configs.common.lvis import lvis

from ..coco.mask_rcnn_vit_h import dataloader, model, optimizer, param_groups, schedule, test, train
from ..common.train import LVIS, iterations

lvis(model, dataloader)
model.backbone.drop_path_rate = 0.4
train.max_iter = iterations(100, LVIS)
