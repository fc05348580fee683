"""Mask R-CNN, a Swin of vit-mini's parameters, the embedded set; its recipe."""

from detectron2.config import LazyCall as L
from detectron2.modeling import SwinTransformer

from ..common.hierarchical import fpn
from .mask_rcnn_vit_mini import dataloader, model, optimizer, param_groups, schedule, test, train

model.backbone = fpn(
    L(SwinTransformer)(
        depths=[2, 6],
        embed_dim=32,
        num_heads=[1, 2],
        window_size=4,
        out_indices=[0, 1],
        drop_path_rate=0.0,
    ),
    ["p0", "p1"],
)
model.backbone.update(out_channels=64, top_block=None, square_pad=128)

# From random weights.
train.update(init_weights="none", max_iter=480)
