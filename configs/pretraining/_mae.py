"""Masked autoencoding (arXiv:2111.06377) on ImageNet-1k, of any size.

Table 8 and A.1: AdamW, betas 0.9 and 0.95, weight decay 0.05, learning rate 1.5e-4 per 256 images,
batch 4096, cosine after 40 epochs of warmup, random resized crops and flips. Its code: crops of
0.2 to 1, no weight decay of norms and biases (biases decay here). Table 1 (a, b): decoder of 8
blocks of 512 channels; Figure 5: three quarters hidden; Table 1 (d): normalised pixels. 1600
epochs: Table 3, and the released weights. Positions are fixed sines and cosines (A.1).
"""

from detectron2.config import LazyCall as L

from backbones.pretraining.mae import MaskedAutoencoder

from ..common.pretraining import dataloader
from ..common.schedule import cosine as schedule
from ..common.train import train
from ._imagenet import adamw, encoder_of, iterations

_batch = 4096
model = L(MaskedAutoencoder)(
    encoder=encoder_of("vit-b", positions="sincos2d"),
    decoder_dim=512,
    decoder_depth=8,
    decoder_heads=16,
    mask_ratio=0.75,
    norm_pixels=True,
)
dataloader.train.total_batch_size = _batch
optimizer = adamw(1.5e-4, _batch, weight_decay=0.05)
param_groups = dict(layer_decay=1.0, no_weight_decay=["norm", "pos_embed"])
schedule.warmup_iters = iterations(40, _batch)
train.max_iter = iterations(1600, _batch)
