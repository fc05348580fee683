"""Cascade Mask R-CNN, ViT-L, LVIS v1; recipe of mask_rcnn_vit_l.py.

Published: 49.2 box AP / 44.5 mask AP (detectron2's released model). Table 7 of arXiv:2203.16527 has
51.2 / 46.0 / 34.3 of rare categories: as far as is known, with 1280 px and soft-NMS.
"""

from ..common.detectors import cascade
from .mask_rcnn_vit_l import dataloader, model, optimizer, param_groups, schedule, test, train

cascade(model)
