"""The encoder that a file of weights is of, built from what the file shows."""

import math
import re
from functools import partial
from typing import Any

from detectron2.modeling import MViT, SwinTransformer
from torch import nn

from ..convnext import ConvNeXt
from ..meta import on_meta
from ..vit import ViT
from .contents import Contents, WeightsError
from .words import encoder_words


def own_encoder(contents: Contents) -> nn.Module | None:
    """`ViT` or `ConvNeXt`, or detectron2's SwinTransformer or MViT, of the file's sizes on the meta
    device; None for keys of no such encoder.

    Raises:
        WeightsError: the keys are of one, the shapes are not.
    """
    state = contents.encoder
    shapes = {k: tuple(v.shape) for k, v in state.items()}
    try:
        if words := encoder_words(contents):
            kind = ViT
        elif any(k.endswith(".attn.relative_position_bias_table") for k in state):
            kind, words = SwinTransformer, _swin_words(shapes)
        elif "features.1.0.layer_scale" in state:
            kind, words = ConvNeXt, _convnext_words(shapes)
        elif "blocks.0.attn.pool_q.weight" in state:
            kind, words = MViT, _mvit_words(shapes)
        else:
            return None
        with on_meta():
            return kind(**words)
    except WeightsError:
        raise
    except (ValueError, LookupError, ArithmeticError, RuntimeError, AssertionError) as error:
        raise WeightsError(
            f"{contents.path}: its tensors have the shapes of no encoder ({error})"
        ) from error


def _swin_words(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    tables = "layers.{}.blocks.{}.attn.relative_position_bias_table"
    depths = []
    while tables.format(len(depths), 0) in shapes:
        blocks = (i for i in range(len(shapes)) if tables.format(len(depths), i) not in shapes)
        depths.append(next(blocks))
    offsets, _ = shapes[tables.format(0, 0)]
    dim, in_chans, patch, _ = shapes["patch_embed.proj.weight"]
    norms = sorted(int(m[1]) for k in shapes if (m := re.match(r"norm(\d)\.weight$", k)))
    words = dict(
        patch_size=patch,
        in_chans=in_chans,
        embed_dim=dim,
        depths=depths,
        num_heads=[shapes[tables.format(i, 0)][1] for i in range(len(depths))],
        window_size=(math.isqrt(offsets) + 1) // 2,
        mlp_ratio=shapes["layers.0.blocks.0.mlp.fc1.weight"][0] / dim,
        qkv_bias="layers.0.blocks.0.attn.qkv.bias" in shapes,
        ape="absolute_pos_embed" in shapes,
        patch_norm="patch_embed.norm.weight" in shapes,
        out_indices=norms or range(len(depths)),
    )
    if words["ape"]:
        words["pretrain_img_size"] = shapes["absolute_pos_embed"][2] * patch
    return words


def _convnext_words(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    depths = []
    while (block := f"features.{2 * len(depths) + 1}.{{}}.layer_scale").format(0) in shapes:
        depths.append(next(i for i in range(len(shapes)) if block.format(i) not in shapes))
    norms = sorted(int(m[1]) for k in shapes if (m := re.match(r"norm(\d)\.weight$", k)))
    words = dict(embed_dim=shapes["features.0.0.weight"][0], depths=depths)
    return words | dict(out_indices=norms or range(len(depths)))


def _mvit_words(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """The stride of MViT's patches, 4, is not in the file."""
    depth = len([k for k in shapes if re.match(r"blocks\.\d+\.attn\.pool_q\.weight$", k)])
    dims = [shapes[f"blocks.{i}.attn.proj.weight"][0] for i in range(depth)]
    dim, in_chans, *kernel = shapes["patch_embed.proj.weight"]
    channels, _, *pool = shapes["blocks.0.attn.pool_q.weight"]
    words = dict(
        patch_kernel=kernel,
        patch_padding=[side // 2 for side in kernel],
        in_chans=in_chans,
        embed_dim=dim,
        depth=depth,
        num_heads=dim // channels,
        last_block_indexes=[i for i in range(depth) if i == depth - 1 or dims[i + 1] > dims[i]],
        qkv_pool_kernel=pool,
        mlp_ratio=shapes["blocks.0.mlp.fc1.weight"][0] / dims[0],
        qkv_bias="blocks.0.attn.qkv.bias" in shapes,
        use_abs_pos="pos_embed" in shapes,
        use_rel_pos="blocks.0.attn.rel_pos_h" in shapes,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )
    if words["use_rel_pos"]:
        words["img_size"] = 4 * (shapes["blocks.0.attn.rel_pos_h"][0] + 1) // 2
    if scales := sorted({m[1] for k in shapes if (m := re.match(r"(scale\d)_norm\.", k))}):
        words["out_features"] = scales
    return words
