"""The encoder that InsightFace trains on faces, on any labelled images.

Encoder as recognition/arcface_torch/backbones/vit.py of deepinsight/insightface has it: ReLU6, no
cls token, learned positions, batch norm (norm_layer="bn"), and of its `vit_s` a tenth of the tokens
hidden and drop path 0.1. Numbers of its configs/wf42m_pfc03_40epoch_64gpu_vit_s.py: AdamW, learning
rate 1e-3, weight decay 0.1, 40 epochs, 4 of warmup; its batch is 24,576 (384 on each of 64
devices), this one's 4096 with the same learning rate.

Not there: WebFace42M, the margins of ArcFace's loss and its partial classifier (this is cross
entropy), its head on all tokens side by side with mask tokens in place of hidden ones (this pools
the visible ones), its polynomial decay (this is cosine). Sizes: theirs is 512 channels in 8 heads
and 9 px patches of 112 px images; this is ViT-S, 384 channels in 6 heads and 16 px patches. Its
batch norm has statistics of each place in the image, so it fits no hidden tokens, and its named
encoders all use layer norm instead; block_norm="batch" has statistics of each channel.
"""

import torch
from detectron2.config import LazyCall as L

from backbones.pretraining.classifier import Classifier

from ..common.pretraining import dataloader
from ..common.schedule import cosine as schedule
from ..common.train import train
from ._imagenet import encoder_of, iterations

_batch = 4096
encoder = encoder_of(
    "vit-s",
    block_norm="batch",
    activation="relu6",
    drop_path_rate=0.1,
    pretrain_use_cls_token=False,
)
model = L(Classifier)(encoder=encoder, num_classes=1000, pool="mean", mask_ratio=0.1)
dataloader.train.total_batch_size = _batch
optimizer = L(torch.optim.AdamW)(lr=1e-3, weight_decay=0.1, fused=True)
param_groups = dict(layer_decay=1.0, no_weight_decay=["norm", "pos_embed"])
schedule.warmup_iters = iterations(4, _batch)
train.max_iter = iterations(40, _batch)
