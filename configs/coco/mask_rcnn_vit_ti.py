"""Mask R-CNN, ViT-Ti, COCO, from scratch at 512 px: for one small GPU, or to see the path run.

This recipe is not the paper's and no AP is known for it. Batch 8 at the paper's learning rate per
image (1.6e-4 for 64 from scratch, Table 11) x sqrt(8), 36 epochs.
"""

from ..common.train import iterations
from .mask_rcnn_vit_b import dataloader, model, optimizer, param_groups, schedule, test, train

model.backbone.update(size="vit-ti", img_size=512, drop_path_rate=0.0)
dataloader.image_size = 512
dataloader.train.total_batch_size = 8
optimizer.update(lr=1.6e-4 / 8 * 8**0.5, weight_decay=0.2)
param_groups.layer_decay = 1.0
train.update(max_iter=iterations(36, batch=8), init_weights="none")
