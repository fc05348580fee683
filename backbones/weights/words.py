"""The words of `ViT` that a file of weights shows."""

import math
import re
from functools import partial
from typing import Any

from torch import nn

from ..norms import TokenBatchNorm
from .contents import Contents, WeightsError

# Heads by channels in the ViT family, where no relative positions show the channels of a head.
_HEADS = {192: 3, 384: 6, 768: 12, **dict.fromkeys((1024, 1152, 1280, 1408, 1664, 1792), 16)}
_WINDOW = 14  # ViTDet's


def encoder_words(contents: Contents) -> dict[str, Any]:
    """Arguments with which `ViT` becomes the encoder in the file; {} if it is no plain ViT.

    Which blocks are global is seen from a config.json beside the file, or else from the lengths of
    the tables of relative positions: windows have the shorter ones, but for 14, ViTDet's window.
    Where all have one length, none is global if there are conv blocks or the length is 14; else all
    are, as without tables (classifiers). Heads without config and tables are those of the family's
    sizes, else one per 64 channels. Positions of a grid that is no square become those of a square.

    Raises:
        WeightsError: the keys are a plain ViT's, their shapes are not.
    """
    if "blocks.0.attn.pool_q.weight" in contents.encoder:  # MViT
        return {}
    try:
        return _words(contents)
    except WeightsError as error:
        raise WeightsError(f"{contents.path}: {error}") from error
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise WeightsError(f"{contents.path}: its tensors have the shapes of no ViT") from error


def known_heads(contents: Contents) -> int | None:
    """Heads of the encoder's blocks, where format, relative positions or a size of the family show
    them."""
    for key, tensor in contents.encoder.items():
        if key.endswith("rel_pos_h"):
            return contents.encoder["blocks.0.attn.qkv.weight"].shape[1] // tensor.shape[1]
    dim = contents.encoder["blocks.0.attn.qkv.weight"].shape[1]
    return contents.settings.get("num_heads", _HEADS.get(dim))


def _words(contents: Contents) -> dict[str, Any]:
    state = contents.encoder
    depth = len({m[1] for k in state if (m := re.match(r"blocks\.(\d+)\.attn\.qkv\.weight$", k))})
    shapes = {k: tuple(v.shape) for k, v in state.items()}
    gated = "blocks.0.mlp.w1.weight" in shapes
    first = f"blocks.0.mlp.{'w1' if gated else 'fc1'}.weight"
    needed = ("blocks.0.attn.qkv.weight", first)
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
    window, windowed = _plan(contents, lengths, bool(residual))
    whole = max((n for i, n in lengths.items() if i not in windowed), default=0)
    hidden = shapes[first][0]
    ratio = hidden / dim
    words = stem | dict(
        embed_dim=dim,
        depth=depth,
        # `ViT` rounds the product down.
        mlp_ratio=ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf),
        qkv_bias=_qkv_bias(shapes, dim),
        use_abs_pos="pos_embed" in state or contents.positions is not None,
        pretrain_use_cls_token=contents.prefix > 0,
        use_rel_pos=bool(lengths),
        window_size=window,
        window_block_indexes=windowed,
        residual_block_indexes=residual,
        pre_norm="norm_pre.weight" in state,
    )
    if gated:
        norm = ",norm=true" if "blocks.0.mlp.norm.weight" in state else ""
        words |= dict(mlp=f"swiglu(hidden={hidden}{norm})", mlp_ratio=4.0)
    if "blocks.0.ls1.gamma" in state:
        words["layer_scale"] = 1.0
    if "blocks.0.attn.q_norm.weight" in state:
        words["qk_norm"] = True
    if rope := contents.settings.get("rope"):
        turning = f"rope({','.join(f'{k}={v}' for k, v in rope.items())})"
        words["positions"] = f"learned+{turning}" if "pos_embed" in state else turning
        words["use_abs_pos"] = True
    if resize := contents.settings.get("positions_resize"):
        words["positions_resize"] = resize
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
    if len(shapes.get("registers", ())) == 3:
        words["registers"] = shapes["registers"][1]
    norm = TokenBatchNorm if "blocks.0.norm1.running_mean" in state else nn.LayerNorm
    if eps := contents.settings.get("norm_eps"):
        words["norm_layer"] = partial(norm, eps=eps)
    if act_layer := contents.settings.get("act_layer"):
        words["act_layer"] = act_layer
    return words


def _qkv_bias(shapes: dict[str, tuple[int, ...]], dim: int) -> bool | str:
    bias = shapes.get("blocks.0.attn.qkv.bias")
    return "qv" if bias == (2 * dim,) else bias is not None


def _plan(contents: Contents, lengths: dict[int, int], conv_blocks: bool) -> tuple[int, list[int]]:
    """Window size, and which blocks have windows: as the file's config says, or else guessed from
    the tokens along an axis that each block has relative positions for."""
    told = contents.settings
    if "window_block_indexes" in told:
        return told.get("window_size", _WINDOW), told["window_block_indexes"]
    window, longest = min(lengths.values(), default=_WINDOW), max(lengths.values(), default=0)
    if window < longest == _WINDOW:
        window = _WINDOW  # larger than the whole map
    elif window == longest and not conv_blocks and window != _WINDOW:
        return _WINDOW, []  # every block sees the whole map
    return window, [i for i, n in lengths.items() if n == window]


def _stem(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    if "patch_embed.norm_pixels.weight" in shapes:
        # Three channels, as vit-pytorch's default; the patch is what the pixels leave.
        pixels = shapes["patch_embed.norm_pixels.weight"][0]
        return dict(stem="patchify_norm", in_chans=3, patch_size=math.isqrt(pixels // 3))
    if len(shapes.get("patch_embed.proj.weight", ())) == 4:
        _, in_chans, patch, columns = shapes["patch_embed.proj.weight"]
        if patch != columns and patch and columns:
            raise WeightsError(f"patches of {patch} x {columns} pixels are no squares")
        return dict(in_chans=in_chans, patch_size=patch)
    convs = [s for k, s in shapes.items() if re.match(r"patch_embed\.proj\.\d+\.weight$", k)]
    strided = [s for s in convs if len(s) == 4 and s[2] == 3]
    if not strided:
        return {}
    return dict(stem="conv", in_chans=convs[0][1], patch_size=2 ** len(strided))
