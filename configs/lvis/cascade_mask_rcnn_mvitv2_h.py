"""Cascade Mask R-CNN, MViTv2-H, LVIS v1; recipe of mask_rcnn_mvitv2_h.py.

Published: 49.5 box AP / 44.1 mask AP (detectron2's released model).
"""

from ..common.detectors import cascade
from .mask_rcnn_mvitv2_h import dataloader, model, optimizer, param_groups, schedule, test, train

cascade(model)
