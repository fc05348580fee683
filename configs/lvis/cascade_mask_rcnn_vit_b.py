"""Cascade Mask R-CNN, ViT-B, LVIS v1; recipe of mask_rcnn_vit_b.py.

Published: 43.0 box AP / 38.9 mask AP (detectron2's released model).
"""

from ..common.detectors import cascade
from .mask_rcnn_vit_b import dataloader, model, optimizer, param_groups, schedule, test, train

cascade(model)
