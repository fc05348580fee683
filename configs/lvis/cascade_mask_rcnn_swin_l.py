"""Cascade Mask R-CNN, Swin-L, LVIS v1; recipe of mask_rcnn_swin_l.py.

Published: 46.0 box AP / 41.4 mask AP (detectron2's released model).
"""

from ..common.detectors import cascade
from .mask_rcnn_swin_l import dataloader, model, optimizer, param_groups, schedule, test, train

cascade(model)
