"""Mask R-CNN, vit-mini, the embedded 128 px set: two minutes on one CPU core.

The encoder starts from weights that were trained once with windows alone, as the paper's starts
from images no larger than its windows: propagation is learned in fine-tuning. The recipe is this
suite's own (docs/mini.md), found by trying; the networks are the real ones.
"""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from ..common.data import dataloader
from ..common.model import model
from ..common.optim import optimizer, param_groups
from ..common.schedule import cosine as schedule
from ..common.test import test
from ..common.train import train

_side = 128

model.backbone.update(
    size="vit-mini",
    img_size=_side,
    window_size=4,
    stem="conv",
    use_rel_pos=False,
    drop_path_rate=0.0,
    out_channels=64,
    scale_factors=(2.0, 1.0),
    top_block="none",
)
model.proposal_generator.update(
    in_features=["p2", "p3"],
    batch_size_per_image=64,
    pre_nms_topk=(200, 200),
    post_nms_topk=(100, 50),
)
model.proposal_generator.head.update(in_channels=64, conv_dims=[32])
model.proposal_generator.anchor_generator.update(
    sizes=[[12, 20, 32], [48, 72, 104]], aspect_ratios=[1.0], strides=[4, 8]
)
model.roi_heads.update(
    num_classes=4,
    # Few boxes, most of them objects: among the usual three quarters of background, what lies
    # outside an object is hard to learn in so few iterations (docs/mini.md).
    batch_size_per_image=12,
    positive_fraction=2 / 3,
    box_in_features=["p2", "p3"],
    mask_in_features=["p2", "p3"],
)
# Boxes from 32 px side on are read from p3.
model.roi_heads.box_pooler.update(
    scales=(1.0 / 4, 1.0 / 8), sampling_ratio=2, canonical_box_size=32, canonical_level=3
)
model.roi_heads.mask_pooler.update(
    output_size=7,
    scales=(1.0 / 4, 1.0 / 8),
    sampling_ratio=1,
    canonical_box_size=32,
    canonical_level=3,
)
model.roi_heads.box_head.update(conv_dims=[64], fc_dims=[128])
model.roi_heads.box_head.input_shape.channels = 64
model.roi_heads.box_predictor.input_shape.channels = 128
model.roi_heads.mask_head.update(conv_dims=[64])
model.roi_heads.mask_head.input_shape.update(channels=64, height=7, width=7)

dataloader.image_size = _side
dataloader.train.update(
    dataset="mini_train", total_batch_size=8, loss_batch_size=8, micro_batch_size=8, num_workers=0
)
dataloader.train.mapper.augmentations = [
    L(T.RandomFlip)(horizontal=True, vertical=False),
    L(T.RandomFlip)(horizontal=False, vertical=True),
]
dataloader.test.update(dataset="mini_val", batch_size=10, num_workers=0)
dataloader.test.mapper.augmentations = []

optimizer.update(lr=2e-3, weight_decay=0.05)
param_groups.layer_decay = 1.0
schedule.warmup_iters = 60
# In float32: which CPUs compute in bfloat16 must not decide what a study finds.
train.update(
    max_iter=320,
    init_weights="windows_mini",
    amp=False,
    clip_grad_norm=1.0,
    threads=1,
    checkpoint_period=100,
    log_period=20,
)
