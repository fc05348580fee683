"""Mask R-CNN, ViT-B, LVIS v1, IN-1K MAE, 100 epochs.

Published: 40.1 box AP / 38.1 mask AP / 29.1 mask AP of rare categories (arXiv:2203.16527,
Table 10; detectron2's released model of this recipe: 40.2 / 38.2). 64 GPUs, one image each.
"""

from configs.common.lvis import lvis

from ..coco.mask_rcnn_vit_b import dataloader, model, optimizer, param_groups, schedule, test, train
from ..common.train import LVIS, iterations

lvis(model, dataloader)
optimizer.lr = 2e-4
train.max_iter = iterations(100, LVIS)
