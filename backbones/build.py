"""Named sizes, and the two builders that configs and notebooks use."""

from collections.abc import Callable, Sequence
from typing import Any

from detectron2.modeling.backbone import Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import nn

from .registries import ACTIVATIONS, NORMS, PYRAMIDS, choose, lookup
from .vit import ViT

# B, L, H: arXiv:2203.16527; Ti, S: arXiv:2012.12877. "vit-mini" is this suite's own, for 128 px
# images and minutes of training from scratch on a CPU: hence the conv stem (see docs/mini.md).
SIZES: dict[str, dict[str, Any]] = {
    "vit-mini": dict(
        embed_dim=64,
        depth=6,
        num_heads=2,
        patch_size=8,
        window_size=4,
        img_size=128,
        pretrain_img_size=128,
        pretrain_use_cls_token=False,
        stem="conv",
    ),
    "vit-ti": dict(embed_dim=192, depth=12, num_heads=3),
    "vit-s": dict(embed_dim=384, depth=12, num_heads=6),
    "vit-b": dict(embed_dim=768, depth=12, num_heads=12),
    "vit-l": dict(embed_dim=1024, depth=24, num_heads=16),
    "vit-h": dict(embed_dim=1280, depth=32, num_heads=16),
}

# The image encoders of SAM (arXiv:2304.02643): ViTDet's encoder, then SAM's own neck.
for _letter in "blh":
    SIZES[f"sam-vit-{_letter}"] = SIZES[f"vit-{_letter}"] | dict(
        img_size=1024,
        pretrain_img_size=1024,
        pretrain_use_cls_token=False,
        use_rel_pos=True,
        out_chans=256,
    )

# Levels on top of p5, each built for a number of channels.
_TOP_BLOCKS: dict[str, Callable[[int], nn.Module | None]] = {
    "max_pool": lambda channels: LastLevelMaxPool(),
    "p6p7": lambda channels: LastLevelP6P7(channels, channels, in_feature="p5"),
    "none": lambda channels: None,
}


def build_encoder(
    size: str = "vit-b", block_norm: str = "layer", activation: str = "gelu", **words: Any
) -> ViT:
    """An encoder of a named size.

    Args:
        size: one of `SIZES`.
        block_norm: the blocks' norms, a word of `NORMS`: "layer", "batch" or "layer(eps=1e-5)"; in
            place of `ViT`'s `norm_layer`, which is used if it is among the words.
        activation: the MLPs', a word of `ACTIVATIONS`: "gelu", "gelu_tanh", "relu6" or
            "quick_gelu"; in place of `ViT`'s `act_layer`, likewise.
        **words: `ViT`'s arguments, over those of the size: ``propagation="conv"``, ``count=4``,
            ``placement="even"``, ``use_rel_pos=True``, ``img_size=1024``, ...

    Raises:
        ValueError: an unknown size, or a word that `ViT` refuses.
    """
    choose("size", size, SIZES)
    defaults = dict(
        norm_layer=lookup(NORMS, "block_norm", block_norm),
        act_layer=lookup(ACTIVATIONS, "activation", activation),
    )
    return ViT(**{**defaults, **SIZES[size], **words})


def build_backbone(
    size: str = "vit-b",
    pyramid: str = "simple",
    out_channels: int = 256,
    scale_factors: Sequence[float] = (4.0, 2.0, 1.0, 0.5),
    norm: str = "LN",
    square_pad: int = 0,
    top_block: str = "max_pool",
    **words: Any,
) -> Backbone:
    """Encoder and neck: levels p2..p6 of an image, for any detectron2 detector.

    A neck with a true `reads_stages` gets an encoder of as many `stages` as scale factors.

    Args:
        size, **words: as of `build_encoder`.
        pyramid: one of `PYRAMIDS`.
        out_channels, scale_factors, norm, square_pad: as of `FeaturePyramid`.
        top_block: "max_pool": one more level by taking every second position of p5, as FPN does;
            "p6p7": two by stride-2 convs on p5, as RetinaNet does; "none".

    Raises:
        ValueError: as of `build_encoder`; an unknown pyramid or top block; scale factors or a top
            block that do not fit the pyramid.
    """
    neck = lookup(PYRAMIDS, "pyramid", pyramid)
    choose("top_block", top_block, _TOP_BLOCKS)
    if getattr(getattr(neck, "func", neck), "reads_stages", False):
        words = dict(stages=len(scale_factors)) | words
    return neck(
        net=build_encoder(size, **words),
        in_feature="last_feat",
        out_channels=out_channels,
        scale_factors=scale_factors,
        top_block=_TOP_BLOCKS[top_block](out_channels),
        norm=norm,
        square_pad=square_pad,
    )
