"""Detection backbones: the ViTDet encoder, its variants, and their necks."""

from . import conv_blocks as _conv_blocks  # noqa: F401  (registers its entries)
from .activations import QuickGELU, TanhGELU
from .build import SIZES, build_backbone, build_encoder
from .convnext import ConvNeXt
from .encoder import Encoder
from .norms import LayerNorm2d, TokenBatchNorm
from .partition import Partition, ShiftedWindows, Windows
from .propagation import PLACEMENTS, EncoderSpec, Propagation
from .pyramids import (
    AvgPoolPyramid,
    FeaturePyramid,
    LastMapFPN,
    NoPyramid,
    SimpleFeaturePyramid,
    StageFPN,
)
from .registries import (
    ACTIVATIONS,
    CONV_BLOCKS,
    MLPS,
    NORMS,
    POSITIONS,
    PROPAGATIONS,
    PYRAMIDS,
    STEMS,
)
from .rope import Rope
from .stems import ConvStem, NormedPatchEmbed, PatchEmbed
from .vit import ViT
from .yacs import add_vit_config

__all__ = [
    "ACTIVATIONS",
    "CONV_BLOCKS",
    "MLPS",
    "NORMS",
    "PLACEMENTS",
    "POSITIONS",
    "PROPAGATIONS",
    "PYRAMIDS",
    "SIZES",
    "STEMS",
    "AvgPoolPyramid",
    "ConvNeXt",
    "ConvStem",
    "Encoder",
    "EncoderSpec",
    "FeaturePyramid",
    "LastMapFPN",
    "LayerNorm2d",
    "NoPyramid",
    "NormedPatchEmbed",
    "Partition",
    "PatchEmbed",
    "Propagation",
    "QuickGELU",
    "Rope",
    "ShiftedWindows",
    "SimpleFeaturePyramid",
    "StageFPN",
    "TanhGELU",
    "TokenBatchNorm",
    "ViT",
    "Windows",
    "add_vit_config",
    "build_backbone",
    "build_encoder",
]
