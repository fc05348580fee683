"""Cascade Mask R-CNN, MViTv2-L, LVIS v1; recipe of mask_rcnn_mvitv2_l.py.

Published: 49.4 box AP / 44.2 mask AP (detectron2's released model).
"""

from ..common.detectors import cascade
from .mask_rcnn_mvitv2_l import dataloader, model, optimizer, param_groups, schedule, test, train

cascade(model)
