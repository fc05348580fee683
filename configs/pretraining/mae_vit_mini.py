"""Masked autoencoding (arXiv:2111.06377) at mini scale: this suite's own recipe, found by trying.

The conv stem reads beyond a patch: hidden pixels are blanked before it.
"""

from detectron2.config import LazyCall as L

from backbones.pretraining.mae import MaskedAutoencoder

from ._mini import dataloader, encoder, optimizer, param_groups, schedule, train

model = L(MaskedAutoencoder)(
    encoder=encoder, decoder_dim=64, decoder_depth=2, decoder_heads=2, mask_ratio=0.75
)
train.max_iter = 600
