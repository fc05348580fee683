"""Supervised ViT-B: `_sup` says where each number is from."""

from ._sup import dataloader, model, optimizer, param_groups, schedule, train
