"""Cascade Mask R-CNN, ViT-H, COCO; recipe of mask_rcnn_vit_h.py.

Published: 58.7 box AP / 50.9 mask AP (arXiv:2203.16527, Table 5).
"""

from ..common.detectors import cascade
from .mask_rcnn_vit_h import dataloader, model, optimizer, param_groups, schedule, test, train

cascade(model)
