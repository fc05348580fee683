"""Mask R-CNN, ViT-L, LVIS v1, IN-1K MAE, 100 epochs.

Published: 46.1 box AP / 43.5 mask AP / 35.3 mask AP of rare categories (arXiv:2203.16527,
Table 10; detectron2's released model of this recipe: 46.1 / 43.6). 64 GPUs, one image each.
"""

from configs.common.lvis import lvis

from ..coco.mask_rcnn_vit_l import dataloader, model, optimizer, param_groups, schedule, test, train
from ..common.train import LVIS, iterations

lvis(model, dataloader)
optimizer.lr = 2e-4
train.max_iter = iterations(100, LVIS)
