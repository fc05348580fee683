"""Mask R-CNN, Swin-B, COCO, IN-21K supervised, 50 epochs (arXiv:2203.16527, Table 11).

Published: 51.4 box AP / 45.4 mask AP (Table 5). The released Cascade config of Swin-B has another
learning rate, 4e-5, and drop path, 0.4: the rows "released" of the study plain-vs-hierarchical.
"""

from ..common.hierarchical import swin
from ..common.train import iterations
from .mask_rcnn_vit_b import dataloader, model, optimizer, param_groups, schedule, test, train

model.backbone = swin(embed_dim=128, num_heads=[4, 8, 16, 32], drop_path_rate=0.3)
optimizer.update(lr=1e-4, weight_decay=0.05)
param_groups.update(layer_decay=1.0, no_weight_decay=["norm", "relative_position_bias"])
train.update(max_iter=iterations(50), init_weights="sup_in21k")
