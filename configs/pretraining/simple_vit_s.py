"""SimpleViT (arXiv:2205.01580) on ImageNet-1k, with the numbers of its code,
google-research/big_vision, big_vision/configs/vit_s16_i1k.py.

ViT-S/16, mean of the tokens, fixed sines and cosines; 90 epochs of batch 1024, Adam with learning
rate 1e-3, weight decay 1e-4 times the learning rate's factor, gradients clipped to norm 1, 10,000
iterations of warmup, then cosine; Inception crops (0.05 to 1), flips, RandAugment of 2 operations
of magnitude 10, mixup 0.2. AdamW multiplies weight decay by the learning rate: hence 0.1. Theirs
holds back 1 % of the training images, has frequencies of positions that end at 1/10,000, has pixels
in -1..1, norms before it pools, and has a hidden layer in its head (`rep_size`); here pixels are as
the detectors have them and the head is linear.
"""

import torch
from detectron2.config import LazyCall as L
from torchvision.transforms import v2

from backbones.pretraining.classifier import Classifier

from ..common.pretraining import dataloader
from ..common.schedule import cosine as schedule
from ..common.train import train
from ._imagenet import encoder_of, iterations

_batch = 1024
encoder = encoder_of("vit-s", positions="sincos2d", pretrain_use_cls_token=False)
model = L(Classifier)(encoder=encoder, num_classes=1000, pool="mean", mixup=0.2)
dataloader.train.total_batch_size = _batch
dataloader.train.mapper.transforms = [
    L(v2.RandomResizedCrop)(size="${dataloader.image_size}", scale=(0.05, 1.0), interpolation=2),
    L(v2.RandomHorizontalFlip)(p=0.5),
    L(v2.RandAugment)(num_ops=2, magnitude=10, num_magnitude_bins=11),  # 10 of 10
]
optimizer = L(torch.optim.AdamW)(lr=1e-3, weight_decay=1e-4 / 1e-3, fused=True)
param_groups = dict(layer_decay=1.0, no_weight_decay=["norm", "pos_embed"])
schedule.warmup_iters = 10_000
train.max_iter = iterations(90, _batch)
train.clip_grad_norm = 1.0
