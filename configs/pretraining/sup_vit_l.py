"""Supervised ViT-L: `_sup` says where each number is from."""

from ._imagenet import iterations
from ._sup import dataloader, model, optimizer, param_groups, schedule, train

model.encoder.update(size="vit-l", count=24, drop_path_rate=0.2)
train.max_iter = iterations(200, dataloader.train.total_batch_size)
