"""Mask R-CNN, ViT-H, COCO, IN-1K MAE, 75 epochs (arXiv:2203.16527, Table 11).

Published: 56.7 box AP / 50.1 mask AP with relative positions (Table 5; released: 56.7 / 50.2).
64 GPUs, one image each. MAE's ViT-H has 14 px patches, which the paper resizes to 16.
"""

from ..common.train import iterations
from .mask_rcnn_vit_l import dataloader, model, optimizer, param_groups, schedule, test, train

model.backbone.update(size="vit-h", drop_path_rate=0.5)
param_groups.update(layer_decay=0.9, no_weight_decay=[])
train.update(max_iter=iterations(75), parallel="fsdp")
