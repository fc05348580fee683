"""Mask R-CNN, MViTv2-B, IN-21K supervised, 512 px, a tenth of COCO; recipe of mask_rcnn_vit_s.py.

Windows are those of its weights; learning rate and drop path the paper's (arXiv:2203.16527, Table
11; of 64 images a step).
"""

from ..common.hierarchical import mvitv2
from .mask_rcnn_vit_s import dataloader, model, optimizer, param_groups, schedule, test, train

model.backbone = mvitv2(
    embed_dim=96, depth=24, num_heads=1, stage_ends=(1, 4, 20, 23), drop_path_rate=0.4
)
model.backbone.square_pad = 512
optimizer.lr = 8e-5
param_groups.layer_decay = 1.0
train.init_weights = "sup_in21k"
