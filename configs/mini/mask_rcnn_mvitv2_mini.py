"""Mask R-CNN, an MViTv2 of vit-mini's parameters, the embedded set; its recipe."""

from detectron2.config import LazyCall as L
from detectron2.modeling import MViT

from backbones.norms import layer_norm

from ..common.hierarchical import fpn
from .mask_rcnn_vit_mini import dataloader, model, optimizer, param_groups, schedule, test, train

model.backbone = fpn(
    L(MViT)(
        img_size=128,
        embed_dim=32,
        depth=8,
        num_heads=1,
        last_block_indexes=(1, 7, 8),  # two stages; the third would begin behind the last block
        adaptive_window_size=16,
        residual_pooling=True,
        norm_layer=layer_norm,
        out_features=["scale2", "scale3"],
    ),
    ["scale2", "scale3"],
)
model.backbone.update(out_channels=64, top_block=None, square_pad=128)

# From random weights.
train.update(init_weights="none", max_iter=480)
