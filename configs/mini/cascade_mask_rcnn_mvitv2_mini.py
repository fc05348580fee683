"""Cascade Mask R-CNN, MViTv2, the embedded set; recipe of mask_rcnn_mvitv2_mini.py."""

from ..common.detectors import cascade
from .mask_rcnn_mvitv2_mini import dataloader, model, optimizer, param_groups, schedule, test, train

cascade(model)
