"""Absolute and decomposed relative positions, resized to the map at hand."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def absolute_positions(pos_embed_1PC: Tensor, has_cls_token: bool, size: tuple[int, int]) -> Tensor:
    """Pre-trained absolute positions for a map of another size.

    Args:
        pos_embed_1PC: (1, P, C) with P = side * side, one more with a cls token in front.
        has_cls_token: whether the first entry belongs to a cls token (it is dropped).
        size: rows and columns wanted. Bicubic, as in detectron2; exact for the original size.

    Returns:
        (1, H, W, C).
    """
    if has_cls_token:
        pos_embed_1PC = pos_embed_1PC[:, 1:]
    side = math.isqrt(pos_embed_1PC.shape[1])
    pos_1HWC = pos_embed_1PC.reshape(1, side, side, -1)
    if size == (side, side):
        return pos_1HWC
    pos_1CHW = F.interpolate(
        pos_1HWC.permute(0, 3, 1, 2), size=size, mode="bicubic", align_corners=False
    )
    return pos_1CHW.permute(0, 2, 3, 1)


def relative_positions(table_LD: Tensor, length: int) -> Tensor:
    """Embedding of every (query, key) offset along one axis.

    Args:
        table_LD: (L, D), L = 2 * trained length - 1, resized linearly for another length.
        length: tokens along the axis.

    Returns:
        (length, length, D): entry (q, k) is the embedding of offset q - k.
    """
    wanted = 2 * length - 1
    if table_LD.shape[0] != wanted:
        table_LD = F.interpolate(table_LD.T[None], size=wanted, mode="linear")[0].T
    index = torch.arange(length, device=table_LD.device)
    return table_LD[index[:, None] - index[None, :] + length - 1]


def relative_position_bias(
    q_GMND: Tensor, table_h: Tensor, table_w: Tensor, size: tuple[int, int]
) -> Tensor:
    """Attention bias of decomposed relative positions (MViTv2, arXiv:2112.01526).

    Args:
        q_GMND: unscaled queries, N = h * w tokens.
        table_h, table_w: (2 * length - 1, D) per axis.
        size: (h, w) of the group.

    Returns:
        (G, M, N, N): q . Rh[row offset] + q . Rw[column offset].
    """
    h, w = size
    G, M, N, D = q_GMND.shape
    q_GMhwD = q_GMND.reshape(G, M, h, w, D)
    rel_h = torch.einsum("gmhwd,hkd->gmhwk", q_GMhwD, relative_positions(table_h, h))
    rel_w = torch.einsum("gmhwd,wkd->gmhwk", q_GMhwD, relative_positions(table_w, w))
    return (rel_h[..., :, None] + rel_w[..., None, :]).reshape(G, M, N, N)
