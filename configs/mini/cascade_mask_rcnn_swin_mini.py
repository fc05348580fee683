"""Cascade Mask R-CNN, Swin, the embedded set; recipe of mask_rcnn_swin_mini.py."""

from ..common.detectors import cascade
from .mask_rcnn_swin_mini import dataloader, model, optimizer, param_groups, schedule, test, train

cascade(model)
