"""Unmasked tuning of `flip_vit_mini`: a tenth of its iterations at a tenth of its learning rate,
this suite's own choice; FLIP's hundredth (arXiv:2212.00794) would be a few iterations here."""

from .sup_vit_mini import dataloader, model, optimizer, param_groups, schedule, train

optimizer.lr = optimizer.lr / 10
train.max_iter = train.max_iter // 10
schedule.warmup_iters = train.max_iter // 5
train.init_weights = "recipe:flip"
