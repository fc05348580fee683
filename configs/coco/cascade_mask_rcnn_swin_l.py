"""Cascade Mask R-CNN, Swin-L, COCO; recipe of mask_rcnn_swin_l.py.

Published: 54.8 box AP / 47.3 mask AP (arXiv:2203.16527, Table 5).
"""

from ..common.detectors import cascade
from .mask_rcnn_swin_l import dataloader, model, optimizer, param_groups, schedule, test, train

cascade(model)
