"""Mask R-CNN, a ConvNeXt of vit-mini's parameters, the embedded set; its recipe."""

from detectron2.config import LazyCall as L

from backbones import ConvNeXt

from ..common.hierarchical import fpn
from .mask_rcnn_vit_mini import dataloader, model, optimizer, param_groups, schedule, test, train

# Factors of channels that start at 1e-6 take longer to grow than there is time.
model.backbone = fpn(L(ConvNeXt)(embed_dim=40, depths=[2, 5], layer_scale=1.0), ["p0", "p1"])
model.backbone.update(out_channels=64, top_block=None, square_pad=128)

# From random weights.
train.update(init_weights="none", max_iter=480)
