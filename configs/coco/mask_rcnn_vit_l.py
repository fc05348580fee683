"""Mask R-CNN, ViT-L, COCO, IN-1K MAE, 100 epochs (arXiv:2203.16527, Table 11).

Published: 54.6 box AP / 48.6 mask AP without relative positions (Table 2), 55.6 / 49.2 with them
(Table 5; the released model of this recipe: 55.5 / 49.2). 64 GPUs, one image each.
"""

from .mask_rcnn_vit_b import dataloader, model, optimizer, param_groups, schedule, test, train

model.backbone.update(size="vit-l", drop_path_rate=0.4)
param_groups.layer_decay = 0.8
