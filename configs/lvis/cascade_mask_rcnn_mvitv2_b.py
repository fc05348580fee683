"""Cascade Mask R-CNN, MViTv2-B, LVIS v1; recipe of mask_rcnn_mvitv2_b.py.

Published: 46.3 box AP / 42.0 mask AP (detectron2's released model).
"""

from ..common.detectors import cascade
from .mask_rcnn_mvitv2_b import dataloader, model, optimizer, param_groups, schedule, test, train

cascade(model)
