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

# Encoders of other pre-trainings: their blocks and positions, ViTDet's windows and propagation.
# Patches have 16 px where theirs have 14: `pretrain_img_size` is that of as many patches as
# theirs, and a file's kernel is resized when it is loaded.
_DINOV2 = dict(layer_scale=1.0, pretrain_img_size=37 * 16)
_DINOV3 = dict(
    positions="rope",
    use_rel_pos=False,
    qkv_bias="qv",
    layer_scale=1e-5,
    registers=4,
    block_norm="layer(eps=1e-5)",
)
_EVA02 = dict(
    positions="learned+rope(unit=token,coordinates=window)",
    use_rel_pos=False,
    qkv_bias="qv",
    pretrain_img_size=16 * 16,
    window_size=16,
)
_PE = dict(
    positions="learned+rope(unit=token,coordinates=window,axes=xy)",
    use_rel_pos=False,
    pre_norm=True,
    block_norm="layer(eps=1e-5)",
)
_PE_14, _PE_24, _PE_32 = (_PE | dict(pretrain_img_size=side * 16) for side in (14, 24, 32))
_PE_G = _PE_32 | dict(mlp_ratio=8960 / 1536, pretrain_use_cls_token=False)
_SAM3 = _PE_24 | dict(positions_resize="tile", window_size=24, mlp_ratio=4736 / 1024)
SIZES |= {
    name: dict(embed_dim=embed_dim, depth=depth, num_heads=num_heads) | words
    for name, embed_dim, depth, num_heads, words in (
        ("dinov2-s", 384, 12, 6, _DINOV2),
        ("dinov2-b", 768, 12, 12, _DINOV2),
        ("dinov2-l", 1024, 24, 16, _DINOV2),
        ("dinov2-g", 1536, 40, 24, _DINOV2 | dict(mlp="swiglu(hidden=4096)")),
        ("dinov3-s", 384, 12, 6, _DINOV3),
        ("dinov3-s+", 384, 12, 6, _DINOV3 | dict(mlp="swiglu(hidden=1536)")),
        ("dinov3-b", 768, 12, 12, _DINOV3),
        ("dinov3-l", 1024, 24, 16, _DINOV3),
        ("dinov3-h+", 1280, 32, 20, _DINOV3 | dict(mlp="swiglu(hidden=5120)")),
        ("dinov3-7b", 4096, 40, 32, _DINOV3 | dict(mlp="swiglu(hidden=8192)", qkv_bias=False)),
        ("eva02-ti", 192, 12, 3, _EVA02 | dict(mlp="swiglu(hidden=512)")),
        ("eva02-s", 384, 12, 6, _EVA02 | dict(mlp="swiglu(hidden=1024)")),
        ("eva02-b", 768, 12, 12, _EVA02 | dict(mlp="swiglu(hidden=2048,norm=true)")),
        ("eva02-l", 1024, 24, 16, _EVA02 | dict(mlp="swiglu(hidden=2730,norm=true)")),
        ("pe-core-ti", 192, 12, 3, _PE_24),
        ("pe-core-s", 384, 12, 6, _PE_24),
        ("pe-core-b", 768, 12, 12, _PE_14),
        ("pe-core-l", 1024, 24, 16, _PE_24),
        ("pe-core-g", 1536, 50, 16, _PE_G),
        ("pe-spatial-ti", 192, 12, 3, _PE_32),
        ("pe-spatial-s", 384, 12, 6, _PE_32),
        ("pe-spatial-b", 768, 12, 12, _PE_32),
        ("pe-spatial-l", 1024, 24, 16, _PE_32),
        ("pe-spatial-g", 1536, 50, 16, _PE_G | dict(layer_scale=0.1)),
        ("sam3", 1024, 32, 16, _SAM3),
    )
}

# Levels on top of p5, each built for a number of channels.
_TOP_BLOCKS: dict[str, Callable[[int], nn.Module | None]] = {
    "max_pool": lambda channels: LastLevelMaxPool(),
    "p6p7": lambda channels: LastLevelP6P7(channels, channels, in_feature="p5"),
    "none": lambda channels: None,
}


def build_encoder(
    size: str = "vit-b",
    block_norm: str | None = None,
    activation: str | None = None,
    **words: Any,
) -> ViT:
    """An encoder of a named size.

    Args:
        size: one of `SIZES`.
        block_norm: the blocks' norms, a word of `NORMS`: "layer", "batch" or "layer(eps=1e-5)"; in
            place of `ViT`'s `norm_layer`, which is used if it is among the words.
            None: that of the size, else "layer".
        activation: the MLPs', a word of `ACTIVATIONS`: "gelu", "gelu_tanh", "relu6" or
            "quick_gelu"; in place of `ViT`'s `act_layer`, likewise. None: "gelu".
        **words: `ViT`'s arguments, over those of the size: ``propagation="conv"``, ``count=4``,
            ``placement="even"``, ``use_rel_pos=True``, ``img_size=1024``, ...

    Raises:
        ValueError: an unknown size, or a word that `ViT` refuses.
    """
    own = dict(SIZES[choose("size", size, SIZES)])
    block_norm = block_norm or own.pop("block_norm", "layer")
    own.pop("block_norm", None)
    defaults = dict(
        norm_layer=lookup(NORMS, "block_norm", block_norm),
        act_layer=lookup(ACTIVATIONS, "activation", activation or "gelu"),
    )
    return ViT(**{**defaults, **own, **words})


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
