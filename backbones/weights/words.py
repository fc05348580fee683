"""The words of `ViT` that a file of weights shows."""

import math
import re
from functools import partial
from typing import Any

from torch import nn

from .contents import Contents, WeightsError

# Heads by channels in the ViT family, where no relative positions show the channels of a head.
_HEADS = {
    64: 2,
    192: 3,
    384: 6,
    768: 12,
    1024: 16,
    1152: 16,
    1280: 16,
    1408: 16,
    1664: 16,
    1792: 16,
}


def encoder_words(contents: Contents) -> dict[str, Any]:
    """Arguments with which `ViT` becomes the encoder in the file; {} if it is no plain ViT.

    Which blocks are global is seen from tables of relative positions only; without them, all are
    (as in classifiers). Where all tables have one length, none is global if there are conv blocks
    or the length is that of ViTDet's windows, 14; else all are. Heads without such tables are those
    of the family's sizes, else one per 64 channels.

    Raises:
        WeightsError: the keys are a plain ViT's, their shapes are not.
    """
    if "blocks.0.attn.pool_q.weight" in contents.encoder:  # MViT
        return {}
    try:
        return _words(contents)
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise WeightsError(f"{contents.path}: its tensors have the shapes of no ViT") from error


def known_heads(contents: Contents) -> int | None:
    """Heads of the encoder's blocks, where format, relative positions or a size of the family show
    them."""
    for key, tensor in contents.encoder.items():
        if key.endswith("rel_pos_h"):
            return contents.encoder["blocks.0.attn.qkv.weight"].shape[1] // tensor.shape[1]
    dim = contents.encoder["blocks.0.attn.qkv.weight"].shape[1]
    return contents.settings.get("num_heads") or _HEADS.get(dim)


def _words(contents: Contents) -> dict[str, Any]:
    state = contents.encoder
    depth = len({m[1] for k in state if (m := re.match(r"blocks\.(\d+)\.attn\.qkv\.weight$", k))})
    shapes = {k: tuple(v.shape) for k, v in state.items()}
    needed = ("blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight")
    if not (stem := _stem(shapes)) or any(len(shapes.get(k, ())) != 2 for k in needed):
        return {}
    dim = shapes["blocks.0.attn.qkv.weight"][1]
    # Relative positions of n tokens along an axis are a table of 2 n - 1.
    lengths = {
        i: (shapes[key][0] + 1) // 2
        for i in range(depth)
        if (key := f"blocks.{i}.attn.rel_pos_h") in shapes
    }
    residual = [i for i in range(depth) if f"blocks.{i}.residual.conv1.weight" in state]
    window = min(lengths.values(), default=14)
    whole = max(lengths.values(), default=0)
    if whole == window and (residual or window == 14):
        whole = 0  # no block sees the whole map
    hidden = shapes["blocks.0.mlp.fc1.weight"][0]
    ratio = hidden / dim
    words = stem | dict(
        embed_dim=dim,
        depth=depth,
        # `ViT` rounds the product down.
        mlp_ratio=ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf),
        qkv_bias="blocks.0.attn.qkv.bias" in state,
        use_abs_pos="pos_embed" in state or contents.positions is not None,
        pretrain_use_cls_token=contents.prefix > 0,
        use_rel_pos=bool(lengths),
        window_size=window,
        window_block_indexes=[i for i, n in lengths.items() if n < whole or not whole],
        residual_block_indexes=residual,
        pre_norm="norm_pre.weight" in state,
    )
    words["num_heads"] = known_heads(contents) or max(1, dim // 64)
    patch = words["patch_size"]
    if len(shapes.get("pos_embed", ())) == 3:
        entries = shapes["pos_embed"][1] - contents.prefix
        words["pretrain_img_size"] = math.isqrt(entries) * patch
    words["img_size"] = (whole or 1024 // patch) * patch
    if residual:
        convs = sum(f"blocks.{residual[0]}.residual.conv{i}.weight" in state for i in (1, 2, 3))
        words["conv_block"] = ("naive", "basic", "bottleneck")[convs - 1]
    if "neck.0.weight" in state:
        words["out_chans"] = shapes["neck.0.weight"][0]
    if not lengths:  # windows are not seen
        told = ("window_size", "window_block_indexes")
        words |= {k: contents.settings[k] for k in told if k in contents.settings}
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
    if len(shapes.get("patch_embed.proj.weight", ())) == 4:
        _, in_chans, patch, _ = shapes["patch_embed.proj.weight"]
        return dict(in_chans=in_chans, patch_size=patch)
    convs = [s for k, s in shapes.items() if re.match(r"patch_embed\.proj\.\d+\.weight$", k)]
    strided = [s for s in convs if len(s) == 4 and s[2] == 3]
    if not strided:
        return {}
    return dict(stem="conv", in_chans=convs[0][1], patch_size=2 ** len(strided))
