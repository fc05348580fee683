"""Hierarchical backbones under FPN: ConvNeXt, and detectron2's Swin and MViTv2, which the paper
compares with."""

from collections.abc import Sequence

from detectron2.config import LazyCall as L
from detectron2.modeling import FPN, MViT, SwinTransformer
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from omegaconf import DictConfig

from backbones import ConvNeXt, LayerNorm2d
from backbones.norms import layer_norm


def swin(embed_dim: int, num_heads: Sequence[int], drop_path_rate: float) -> DictConfig:
    """Swin (arXiv:2103.14030), 2, 2, 18 and 2 blocks, windows of 7 x 7."""
    return fpn(
        L(SwinTransformer)(
            depths=[2, 2, 18, 2],
            embed_dim=embed_dim,
            num_heads=list(num_heads),
            drop_path_rate=drop_path_rate,
        ),
        ["p0", "p1", "p2", "p3"],
    )


def mvitv2(
    embed_dim: int, depth: int, num_heads: int, stage_ends: Sequence[int], drop_path_rate: float
) -> DictConfig:
    """MViTv2 (arXiv:2112.01526); `stage_ends` are the last blocks of its four stages."""
    return fpn(
        L(MViT)(
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            last_block_indexes=tuple(stage_ends),
            residual_pooling=True,
            drop_path_rate=drop_path_rate,
            norm_layer=layer_norm,
            out_features=["scale2", "scale3", "scale4", "scale5"],
        ),
        ["scale2", "scale3", "scale4", "scale5"],
    )


def convnext(embed_dim: int, depth: int, drop_path_rate: float) -> DictConfig:
    """ConvNeXt (arXiv:2201.03545), 3, 3, `depth` and 3 blocks."""
    return fpn(
        L(ConvNeXt)(embed_dim=embed_dim, depths=[3, 3, depth, 3], drop_path_rate=drop_path_rate),
        ["p0", "p1", "p2", "p3"],
    )


def fpn(bottom_up: DictConfig, in_features: list[str]) -> DictConfig:
    """Levels p2 to p6, with LayerNorm, as in the released configs."""
    return L(FPN)(
        bottom_up=bottom_up,
        in_features=in_features,
        out_channels=256,
        norm=LayerNorm2d,
        top_block=L(LastLevelMaxPool)(),
        square_pad=1024,
    )
