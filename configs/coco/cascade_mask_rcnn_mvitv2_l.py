"""Cascade Mask R-CNN, MViTv2-L, COCO; recipe of mask_rcnn_mvitv2_l.py.

Published: 55.7 box AP / 48.3 mask AP (arXiv:2203.16527, Table 5).
"""

from ..common.detectors import cascade
from .mask_rcnn_mvitv2_l import dataloader, model, optimizer, param_groups, schedule, test, train

cascade(model)
