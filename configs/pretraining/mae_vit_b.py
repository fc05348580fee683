"""MAE's ViT-B: `_mae` says where each number is from."""

from ._mae import dataloader, model, optimizer, param_groups, schedule, train
