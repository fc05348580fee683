"""Cascade Mask R-CNN, MViTv2-B, COCO; recipe of mask_rcnn_mvitv2_b.py.

Published: 55.6 box AP / 48.1 mask AP (arXiv:2203.16527, Table 5).
"""

from ..common.detectors import cascade
from .mask_rcnn_mvitv2_b import dataloader, model, optimizer, param_groups, schedule, test, train

cascade(model)
