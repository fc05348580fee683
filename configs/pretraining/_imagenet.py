"""What the recipes for ImageNet-1k have in common: 224 px images, 16 px patches.

A recipe's numbers are those of its source; iterations are its epochs (`iterations`), learning rates
those of its batch.
"""

import torch
from detectron2.config import LazyCall as L

from backbones import build_encoder

IMAGES = 1_281_167  # of ImageNet-1k's training set


def iterations(epochs: float, batch: int) -> int:
    """Optimizer steps of so many epochs, to the nearest."""
    return round(epochs * IMAGES / batch)


def encoder_of(size: str, depth: int = 12, **words):
    """All blocks global, without relative positions: what pre-training reads any tokens with."""
    words = dict(img_size=224, propagation="global", count=depth) | words
    return L(build_encoder)(size=size, **words)


def adamw(base_lr: float, batch: int, weight_decay: float):
    """MAE's AdamW: a base learning rate is that of 256 images (arXiv:2111.06377, A.1)."""
    return L(torch.optim.AdamW)(
        lr=base_lr * batch / 256, betas=(0.9, 0.95), weight_decay=weight_decay, fused=True
    )
