"""Mask R-CNN, MViTv2-L, COCO, IN-21K supervised, 50 epochs (arXiv:2203.16527, Table 11).

Published: 53.6 box AP / 47.5 mask AP (Table 5).
"""

from ..common.hierarchical import mvitv2
from ..common.train import iterations
from .mask_rcnn_mvitv2_b import dataloader, model, optimizer, param_groups, schedule, test, train

model.backbone = mvitv2(
    embed_dim=144, depth=48, num_heads=2, stage_ends=(1, 7, 43, 47), drop_path_rate=0.5
)
train.max_iter = iterations(50)
