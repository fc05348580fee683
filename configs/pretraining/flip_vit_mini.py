"""Classification from a random half of the patches (FLIP's, arXiv:2212.00794, without its text) at
mini scale: else as `sup_vit_mini`."""

from .sup_vit_mini import dataloader, model, optimizer, param_groups, schedule, train

model.mask_ratio = 0.5
