"""Mask R-CNN, MViTv2-B, COCO, IN-21K supervised, 100 epochs (arXiv:2203.16527, Table 11).

Published: 53.1 box AP / 47.4 mask AP (Table 5).
"""

from ..common.hierarchical import mvitv2
from .mask_rcnn_vit_b import dataloader, model, optimizer, param_groups, schedule, test, train

model.backbone = mvitv2(
    embed_dim=96, depth=24, num_heads=1, stage_ends=(1, 4, 20, 23), drop_path_rate=0.4
)
optimizer.lr = 8e-5
param_groups.layer_decay = 1.0
train.init_weights = "sup_in21k"
