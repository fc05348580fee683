"""Cascade Mask R-CNN, vit-mini, the embedded set; recipe of mask_rcnn_vit_mini.py."""

from ..common.detectors import cascade
from .mask_rcnn_vit_mini import dataloader, model, optimizer, param_groups, schedule, test, train

cascade(model)
