"""Supervised classification of ImageNet-1k from scratch by MAE's authors (arXiv:2111.06377, A.2),
of any size.

Table 11: AdamW, betas 0.9 and 0.95, weight decay 0.3, learning rate 1e-4 per 256 images, batch
4096, cosine after 20 epochs of warmup, 300 epochs (B) or 200 (L, H), RandAugment of magnitude 9,
label smoothing 0.1, mixup 0.8, CutMix 1, drop path 0.1 (B) or 0.2 (L, H), moving average of the
weights 0.9999. Its RandAugment varies the magnitude by a standard deviation of 0.5; torchvision's
does not. Crops are those of its fine-tuning code, 0.08 to 1.
"""

from detectron2.config import LazyCall as L
from torchvision.transforms import v2

from backbones.pretraining.classifier import Classifier

from ..common.pretraining import dataloader
from ..common.schedule import cosine as schedule
from ..common.train import train
from ._imagenet import adamw, encoder_of, iterations

_batch = 4096
model = L(Classifier)(
    encoder=encoder_of("vit-b", drop_path_rate=0.1),
    num_classes=1000,
    pool="cls",
    mask_ratio=0.0,
    label_smoothing=0.1,
    mixup=0.8,
    cutmix=1.0,
)
dataloader.train.total_batch_size = _batch
dataloader.train.mapper.transforms = [
    L(v2.RandomResizedCrop)(size="${dataloader.image_size}", scale=(0.08, 1.0), interpolation=3),
    L(v2.RandomHorizontalFlip)(p=0.5),
    L(v2.RandAugment)(num_ops=2, magnitude=9, num_magnitude_bins=11),  # 9 of 10, as timm counts
]
optimizer = adamw(1e-4, _batch, weight_decay=0.3)
param_groups = dict(layer_decay=1.0, no_weight_decay=["norm", "pos_embed"])
schedule.warmup_iters = iterations(20, _batch)
train.max_iter = iterations(300, _batch)
train.ema = 0.9999
