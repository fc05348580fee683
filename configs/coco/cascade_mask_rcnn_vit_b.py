"""Cascade Mask R-CNN, ViT-B, COCO; recipe of mask_rcnn_vit_b.py.

Published: 54.0 box AP / 46.7 mask AP (arXiv:2203.16527, Table 5).
"""

from ..common.detectors import cascade
from .mask_rcnn_vit_b import dataloader, model, optimizer, param_groups, schedule, test, train

cascade(model)
