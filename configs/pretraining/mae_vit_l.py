"""MAE's ViT-L: `_mae` says where each number is from."""

from ._mae import dataloader, model, optimizer, param_groups, schedule, train

model.encoder.update(size="vit-l", count=24)
