"""The backbones by name in detectron2's yacs configs (`BACKBONE_REGISTRY`)."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone

from .build import build_backbone, build_encoder
from .vit import ViT


def add_vit_config(cfg: CfgNode) -> None:
    """Add `cfg.MODEL.VIT` with its defaults. Then set MODEL.BACKBONE.NAME to
    "build_vit_backbone" (encoder and neck, p2..p6) or "build_vit_encoder" (last_feat only)."""
    cfg.MODEL.VIT = CfgNode(
        dict(
            SIZE="vit-b",
            IMG_SIZE=1024,
            PROPAGATION="global",
            COUNT=None,
            PLACEMENT="even",
            CONV_BLOCK="bottleneck",
            WINDOW_SIZE=None,  # of the size, as the others below
            STEM=None,
            POSITIONS=None,
            POSITIONS_RESIZE="bicubic",
            USE_REL_POS=True,
            BLOCK_NORM=None,
            MLP=None,
            LAYER_SCALE=None,
            QK_NORM=False,
            QKV_BIAS=None,
            ACTIVATION="gelu",
            MASK_RATIO=0.0,
            REGISTERS=None,
            DROP_PATH_RATE=0.1,
            USE_ACT_CHECKPOINT=False,
            PYRAMID="simple",
            OUT_CHANNELS=256,
            SCALE_FACTORS=(4.0, 2.0, 1.0, 0.5),
            NORM="LN",
            TOP_BLOCK="max_pool",
            SQUARE_PAD=0,
        )
    )


_NECK_WORDS = {"PYRAMID", "OUT_CHANNELS", "SCALE_FACTORS", "NORM", "TOP_BLOCK", "SQUARE_PAD"}


@BACKBONE_REGISTRY.register()
def build_vit_encoder(cfg: CfgNode, input_shape: ShapeSpec) -> ViT:
    """The encoder of `cfg.MODEL.VIT`, for `input_shape.channels` image channels."""
    words = {k: v for k, v in _words(cfg).items() if k.upper() not in _NECK_WORDS}
    return build_encoder(in_chans=input_shape.channels, **words)


@BACKBONE_REGISTRY.register()
def build_vit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """The encoder and neck of `cfg.MODEL.VIT`, for `input_shape.channels` image channels."""
    return build_backbone(in_chans=input_shape.channels, **_words(cfg))


def _words(cfg: CfgNode) -> dict[str, Any]:
    return {k.lower(): v for k, v in cfg.MODEL.VIT.items() if v is not None}
