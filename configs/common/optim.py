"""AdamW; layer-wise decay and no-decay groups are `experiments.recipe.optim`'s."""

import torch
from detectron2.config import LazyCall as L

# Table 11 of arXiv:2203.16527 for ViT-B with IN-1K MAE.
optimizer = L(torch.optim.AdamW)(lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1, fused=True)
# Per-group rules: lr x layer_decay per block away from the head; kinds without weight decay.
param_groups = dict(layer_decay=0.7, no_weight_decay=["norm", "pos_embed"])
