"""The backbones by name in detectron2's yacs configs (`BACKBONE_REGISTRY`)."""

import inspect
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone

from .build import build_backbone, build_encoder
from .vit import ViT

# Arguments that yacs cannot say, or says elsewhere.
_OTHERS = {"in_chans", "norm_layer", "act_layer", "stages", "out_feature", "words"}
_ENCODER = {
    name
    for builder in (ViT, build_encoder)
    for name in inspect.signature(builder).parameters
    if name not in _OTHERS
}
_NECK = {
    name: parameter.default
    for name, parameter in inspect.signature(build_backbone).parameters.items()
    if name not in _OTHERS and name not in _ENCODER
}


def add_vit_config(cfg: CfgNode) -> None:
    """Add `cfg.MODEL.VIT`: the arguments of `build_backbone` and `ViT` in capitals. Those of the
    encoder are None: the size's, else the arguments' own defaults. Then set MODEL.BACKBONE.NAME to
    "build_vit_backbone" (encoder and neck, p2..p6) or "build_vit_encoder" (last_feat only)."""
    words = dict.fromkeys(sorted(_ENCODER)) | _NECK | dict(size="vit-b")
    cfg.MODEL.VIT = CfgNode({name.upper(): value for name, value in words.items()})


@BACKBONE_REGISTRY.register()
def build_vit_encoder(cfg: CfgNode, input_shape: ShapeSpec) -> ViT:
    """The encoder of `cfg.MODEL.VIT`, for `input_shape.channels` image channels."""
    words = {name: value for name, value in _words(cfg).items() if name not in _NECK}
    return build_encoder(in_chans=input_shape.channels, **words)


@BACKBONE_REGISTRY.register()
def build_vit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """The encoder and neck of `cfg.MODEL.VIT`, for `input_shape.channels` image channels."""
    return build_backbone(in_chans=input_shape.channels, **_words(cfg))


def _words(cfg: CfgNode) -> dict[str, Any]:
    return {name.lower(): value for name, value in cfg.MODEL.VIT.items() if value is not None}
