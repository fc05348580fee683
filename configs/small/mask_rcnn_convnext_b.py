"""Mask R-CNN, ConvNeXt-B, DINOv3's weights, 512 px, a tenth of COCO: as mask_rcnn_convnext_t.py."""

from ..common.hierarchical import convnext
from .mask_rcnn_convnext_t import dataloader, model, optimizer, param_groups, schedule, test, train

model.backbone = convnext(embed_dim=128, depth=27, drop_path_rate=0.3)
model.backbone.square_pad = 512
