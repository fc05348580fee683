"""Cascade Mask R-CNN, ViT-L, COCO; recipe of mask_rcnn_vit_l.py.

Published: 57.6 box AP / 49.8 mask AP (arXiv:2203.16527, Table 5).
"""

from ..common.detectors import cascade
from .mask_rcnn_vit_l import dataloader, model, optimizer, param_groups, schedule, test, train

cascade(model)
