"""What the mini recipes have in common: vit-mini on 128 px images, on one CPU core."""

import torch
from detectron2.config import LazyCall as L
from torchvision.transforms import v2

from backbones import build_encoder

from ..common.pretraining import dataloader
from ..common.schedule import cosine as schedule
from ..common.train import train

_side = 128

encoder = L(build_encoder)(
    size="vit-mini",
    img_size=_side,
    pretrain_img_size=_side,
    stem="conv",
    positions="learned",
    block_norm="layer",
    activation="gelu",
    pre_norm=False,
    registers=0,
    propagation="global",
    count=6,
)
dataloader.image_size = _side
dataloader.train.update(total_batch_size=32, loss_batch_size=32, micro_batch_size=32, num_workers=0)
dataloader.train.mapper.transforms = [
    L(v2.RandomResizedCrop)(size="${dataloader.image_size}", scale=(0.5, 1.0), interpolation=3),
    L(v2.RandomHorizontalFlip)(p=0.5),
    L(v2.RandomVerticalFlip)(p=0.5),
]
dataloader.test.update(batch_size=50, num_workers=0)
dataloader.test.mapper.transforms = [
    L(v2.Resize)(size="${dataloader.image_size}", interpolation=3),
    L(v2.CenterCrop)(size="${dataloader.image_size}"),
]
optimizer = L(torch.optim.AdamW)(lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
param_groups = dict(layer_decay=1.0, no_weight_decay=["norm", "pos_embed"])
schedule.warmup_iters = 60
# In float32, as the detectors of this scale.
train.update(amp=False, clip_grad_norm=1.0, threads=1, checkpoint_period=200, log_period=20)
