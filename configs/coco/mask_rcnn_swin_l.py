"""Mask R-CNN, Swin-L, COCO, IN-21K supervised, 50 epochs (arXiv:2203.16527, Table 11).

Published: 52.4 box AP / 46.2 mask AP (Table 5). The released Cascade config of Swin-L has another
learning rate, 4e-5, and drop path, 0.4: the rows "released" of the study plain-vs-hierarchical.
"""

from ..common.hierarchical import swin
from .mask_rcnn_swin_b import dataloader, model, optimizer, param_groups, schedule, test, train

model.backbone = swin(embed_dim=192, num_heads=[6, 12, 24, 48], drop_path_rate=0.3)
optimizer.lr = 8e-5
