"""The words of `ViT` that a file of weights shows."""

import math
import re
from functools import partial
from typing import Any

from torch import nn

from .contents import Contents

# Heads by channels in the ViT family, where no relative positions show the channels of a head.
_HEADS = {64: 2, 192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}


def encoder_words(contents: Contents) -> dict[str, Any]:
    """Arguments with which `ViT` becomes the encoder in the file; {} if it is no plain ViT.

    Which blocks are global is seen from tables of relative positions only; without them, all are
    (as in classifiers). Heads without such tables are those of the family's sizes, else one per 64
    channels.
    """
    state = contents.encoder
    depth = len({m[1] for k in state if (m := re.match(r"blocks\.(\d+)\.attn\.qkv\.weight$", k))})
    if not depth:
        return {}
    shapes = {k: tuple(v.shape) for k, v in state.items()}
    dim = shapes["blocks.0.attn.qkv.weight"][1]
    # Relative positions of n tokens along an axis are a table of 2 n - 1.
    lengths = {
        i: (shapes[key][0] + 1) // 2
        for i in range(depth)
        if (key := f"blocks.{i}.attn.rel_pos_h") in shapes
    }
    window = min(lengths.values(), default=14)
    whole = max(lengths.values(), default=0)
    residual = [i for i in range(depth) if f"blocks.{i}.residual.conv1.weight" in state]
    words = _stem(shapes) | dict(
        embed_dim=dim,
        depth=depth,
        mlp_ratio=shapes["blocks.0.mlp.fc1.weight"][0] / dim,
        qkv_bias="blocks.0.attn.qkv.bias" in state,
        use_abs_pos="pos_embed" in state or contents.positions is not None,
        pretrain_use_cls_token=contents.prefix > 0,
        use_rel_pos=bool(lengths),
        window_size=window,
        window_block_indexes=[i for i, n in lengths.items() if n < whole],
        residual_block_indexes=residual,
        pre_norm="norm_pre.weight" in state,
    )
    words["num_heads"] = contents.settings.get("num_heads") or (
        dim // next(shape[1] for k, shape in shapes.items() if k.endswith("rel_pos_h"))
        if lengths
        else _HEADS.get(dim, max(1, dim // 64))
    )
    patch = words["patch_size"]
    if "pos_embed" in state:
        entries = shapes["pos_embed"][1] - contents.prefix
        words["pretrain_img_size"] = math.isqrt(entries) * patch
    if whole:
        words["img_size"] = whole * patch
    if residual:
        convs = sum(f"blocks.{residual[0]}.residual.conv{i}.weight" in state for i in (1, 2, 3))
        words["conv_block"] = ("naive", "basic", "bottleneck")[convs - 1]
    if "neck.0.weight" in state:
        words["out_chans"] = shapes["neck.0.weight"][0]
    if eps := contents.settings.get("norm_eps"):
        words["norm_layer"] = partial(nn.LayerNorm, eps=eps)
    if act_layer := contents.settings.get("act_layer"):
        words["act_layer"] = act_layer
    return words


def _stem(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    if "patch_embed.norm_pixels.weight" in shapes:
        # Three channels, as vit-pytorch's default; the patch is what the pixels leave.
        pixels = shapes["patch_embed.norm_pixels.weight"][0]
        return dict(stem="patchify_norm", in_chans=3, patch_size=math.isqrt(pixels // 3))
    if "patch_embed.proj.weight" in shapes:
        _, in_chans, patch, _ = shapes["patch_embed.proj.weight"]
        return dict(in_chans=in_chans, patch_size=patch)
    convs = [s for k, s in shapes.items() if re.match(r"patch_embed\.proj\.\d+\.weight$", k)]
    strided = [s for s in convs if len(s) == 4 and s[2] == 3]
    return dict(stem="conv", in_chans=convs[0][1], patch_size=2 ** len(strided))
