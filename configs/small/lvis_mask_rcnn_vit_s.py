"""Mask R-CNN, ViT-S, 512 px, a tenth of LVIS v1; recipe of mask_rcnn_vit_s.py."""

from configs.common.lvis import lvis

from .mask_rcnn_vit_s import dataloader, model, optimizer, param_groups, schedule, test, train

lvis(model, dataloader)
