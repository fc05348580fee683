"""Unmasked tuning of `flip_vit_b` (arXiv:2212.00794, 4.1 and Table 1e): 0.32 epochs on top of 32,
so 1 % of these 300, with all patches. A hundredth of the learning rate, as in
facebookresearch/flip, whose base rate drops from 4e-6 to 4e-8; a fifth is warmup, as its 20 of
100 epochs. A moving average of the weights would not forget within so few iterations where it
began: none.
"""

from ._imagenet import iterations
from ._sup import dataloader, model, optimizer, param_groups, schedule, train

_batch = dataloader.train.total_batch_size
optimizer.lr = optimizer.lr / 100
schedule.warmup_iters = iterations(0.6, _batch)
train.max_iter = iterations(3, _batch)
train.ema = 0.0
train.init_weights = "recipe:flip"
