"""Mask R-CNN, MViTv2-H, COCO, IN-21K supervised, 36 epochs (arXiv:2203.16527, Table 11).

Published: 54.1 box AP / 47.7 mask AP (Table 5). The learning rate is Table 11's; that of the
released Cascade config, 1.6e-4, is the row "released" of the study plain-vs-hierarchical.
"""

from ..common.hierarchical import mvitv2
from .mask_rcnn_mvitv2_b import dataloader, model, optimizer, param_groups, schedule, test, train

model.backbone = mvitv2(
    embed_dim=192, depth=80, num_heads=3, stage_ends=(3, 11, 71, 79), drop_path_rate=0.6
)
# 52,500 and 62,500 of 67,500 iterations (released config).
schedule.decay.milestones = [21, 25]
train.max_iter = 67500
