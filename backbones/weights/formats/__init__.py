"""One file per implementation whose weights are read; each registers its formats."""

from . import (  # noqa: F401
    clip,
    detectron2,
    hierarchical,
    mmdetection,
    rotary,
    sam3,
    segment_anything,
    simple_vit,
    timm,
    torchvision,
    transformers,
)
