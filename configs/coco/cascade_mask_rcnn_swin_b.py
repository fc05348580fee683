"""Cascade Mask R-CNN, Swin-B, COCO; recipe of mask_rcnn_swin_b.py.

Published: 54.0 box AP / 46.5 mask AP (arXiv:2203.16527, Table 5).
"""

from ..common.detectors import cascade
from .mask_rcnn_swin_b import dataloader, model, optimizer, param_groups, schedule, test, train

cascade(model)
