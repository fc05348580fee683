"""Mask R-CNN, ConvNeXt-T, COCO, DINOv3's weights of LVD-1689M (arXiv:2508.10104), 50 epochs.

Nobody published this: the recipe is that of Swin-B (arXiv:2203.16527, Table 11), with less
stochastic depth. Not tuned.
"""

from ..common.hierarchical import convnext
from ..common.train import iterations
from .mask_rcnn_vit_b import dataloader, model, optimizer, param_groups, schedule, test, train

model.backbone = convnext(embed_dim=96, depth=9, drop_path_rate=0.2)
optimizer.update(lr=1e-4, weight_decay=0.05)
param_groups.update(layer_decay=1.0, no_weight_decay=["norm"])
train.update(max_iter=iterations(50), init_weights="dinov3_lvd1689m")
