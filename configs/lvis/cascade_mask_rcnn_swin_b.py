"""Cascade Mask R-CNN, Swin-B, LVIS v1; recipe of mask_rcnn_swin_b.py.

Published: 44.0 box AP / 39.6 mask AP (detectron2's released model).
"""

from ..common.detectors import cascade
from .mask_rcnn_swin_b import dataloader, model, optimizer, param_groups, schedule, test, train

cascade(model)
