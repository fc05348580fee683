"""Mask R-CNN, ViT-B, IN-1K MAE, 512 px, a tenth of COCO; recipe of mask_rcnn_vit_s.py."""

from .mask_rcnn_vit_s import dataloader, model, optimizer, param_groups, schedule, test, train

model.backbone.size = "vit-b"
train.init_weights = "mae_in1k"
