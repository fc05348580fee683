"""Cascade Mask R-CNN, ViT-H, LVIS v1; recipe of mask_rcnn_vit_h.py.

Published: 51.5 box AP / 46.6 mask AP (detectron2's released model). Table 7 of arXiv:2203.16527 has
53.4 / 48.1 / 36.9 of rare categories: as far as is known, with 1280 px and soft-NMS.
"""

from ..common.detectors import cascade
from .mask_rcnn_vit_h import dataloader, model, optimizer, param_groups, schedule, test, train

cascade(model)
