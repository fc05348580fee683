"""Mask R-CNN, ViT-B, 512 px, a tenth of LVIS v1; recipe of mask_rcnn_vit_b.py."""

from configs.common.lvis import lvis

from .mask_rcnn_vit_b import dataloader, model, optimizer, param_groups, schedule, test, train

lvis(model, dataloader)
