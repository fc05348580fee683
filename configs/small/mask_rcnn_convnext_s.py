"""Mask R-CNN, ConvNeXt-S, DINOv3's weights, 512 px, a tenth of COCO; recipe of mask_rcnn_vit_s.py.

Decay as for Swin, as in configs/coco/mask_rcnn_convnext_s.py. Not tuned.
"""

from ..common.hierarchical import convnext
from .mask_rcnn_vit_s import dataloader, model, optimizer, param_groups, schedule, test, train

model.backbone = convnext(embed_dim=96, depth=27, drop_path_rate=0.3)
model.backbone.square_pad = 512
optimizer.weight_decay = 0.05
param_groups.update(layer_decay=1.0, no_weight_decay=["norm"])
train.init_weights = "dinov3_lvd1689m"
