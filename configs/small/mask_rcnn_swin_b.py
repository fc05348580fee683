"""Mask R-CNN, Swin-B, IN-21K supervised, 512 px, a tenth of COCO; recipe of mask_rcnn_vit_s.py.

Windows are those of its weights; decay and drop path the paper's (arXiv:2203.16527, Table 11).
"""

from ..common.hierarchical import swin
from .mask_rcnn_vit_s import dataloader, model, optimizer, param_groups, schedule, test, train

model.backbone = swin(embed_dim=128, num_heads=[4, 8, 16, 32], drop_path_rate=0.3)
model.backbone.square_pad = 512
optimizer.weight_decay = 0.05
param_groups.update(layer_decay=1.0, no_weight_decay=["norm", "relative_position_bias"])
train.init_weights = "sup_in21k"
