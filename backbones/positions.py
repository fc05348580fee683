"""Absolute and decomposed relative positions, fixed or resized to the map at hand."""

import math
import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .registries import POSITIONS, accepted, read_word
from .rope import Rope

RESIZE = ("bicubic", "tile")


@POSITIONS.register("learned")
def learned_positions(side: int, has_cls_token: bool, dim: int) -> nn.Parameter:
    """A vector for each place of the pre-training grid, (1, side * side, dim), with a cls token's
    in front (1, 1 + side * side, dim)."""
    pos_embed = nn.Parameter(torch.zeros(1, side**2 + int(has_cls_token), dim))
    nn.init.trunc_normal_(pos_embed, std=0.02)
    return pos_embed


@POSITIONS.register("sincos2d")
def sincos2d_positions(side: int, has_cls_token: bool, dim: int) -> nn.Parameter:
    """As `learned_positions`, fixed: see `fixed_positions`."""
    if dim % 4:
        raise ValueError(f"embed_dim={dim} does not fit positions='sincos2d': a multiple of 4 does")
    pos_embed = nn.Parameter(torch.zeros(1, side**2 + int(has_cls_token), dim))
    pos_embed.data[:, int(has_cls_token) :] = fixed_positions((side, side), dim).flatten(1, 2)
    return pos_embed.requires_grad_(False)


@POSITIONS.register("none")
def no_positions(side: int, has_cls_token: bool, dim: int) -> None:
    """None."""


def read_positions(
    positions: str, side: int, has_cls_token: bool, dim: int
) -> tuple[nn.Parameter | None, Rope | None]:
    """Absolute and rotary positions of a word: "learned", "rope", "learned+rope(unit=token)", ...

    Args:
        side: tokens along the pre-training's image.

    Raises:
        ValueError: a word that is not known, or two of one kind.
    """
    found: dict[bool, nn.Parameter | Rope | None] = {}
    for word in re.split(r"\+(?![^(]*\))", str(positions)):  # not of base=1e+4
        entry, own = read_word(POSITIONS, "positions", word.strip())
        rotary = isinstance(entry, type) and issubclass(entry, Rope)
        if rotary in found:
            raise ValueError(f"positions={positions!r} names two of one kind: give one of the two")
        if rotary:
            found[rotary] = entry(**accepted(entry, length=side) | own)
        else:
            found[rotary] = entry(side, has_cls_token, dim, **own)
    return found.get(False), found.get(True)


def sincos_positions(size: tuple[int, int], frequencies: Tensor) -> Tensor:
    """Sines and cosines of the column, then of the row, at each frequency.

    Args:
        size: rows and columns of the map.
        frequencies: (F,), radians per token.

    Returns:
        (1, rows, columns, 4 * F), in the precision of `frequencies`.
    """
    rows, columns = (torch.arange(n)[:, None] * frequencies for n in size)
    column = torch.cat([columns.sin(), columns.cos()], 1).expand(size[0], -1, -1)
    row = torch.cat([rows.sin(), rows.cos()], 1)[:, None].expand(-1, size[1], -1)
    return torch.cat([column, row], 2)[None]


def fixed_positions(size: tuple[int, int], channels: int) -> Tensor:
    """MAE's sines and cosines (arXiv:2111.06377, appendix A.1): (1, rows, columns, channels).

    `channels` / 4 frequencies fall from 1 towards 1 / 10,000, which SimpleViT's reach.
    """
    quarter = channels // 4
    frequencies = 10_000 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    return sincos_positions(size, frequencies).to(torch.get_default_dtype())


def absolute_positions(
    pos_embed_1PC: Tensor, has_cls_token: bool, size: tuple[int, int], resize: str = "bicubic"
) -> Tensor:
    """Pre-trained absolute positions for a map of another size.

    Args:
        pos_embed_1PC: (1, P, C) with P = side * side, one more with a cls token in front.
        has_cls_token: whether the first entry belongs to a cls token (it is dropped).
        size: rows and columns wanted.
        resize: "bicubic", or "tile": repeated side by side, without change (arXiv:2311.05613).

    Returns:
        (1, H, W, C).
    """
    if has_cls_token:
        pos_embed_1PC = pos_embed_1PC[:, 1:]
    side = math.isqrt(pos_embed_1PC.shape[1])
    pos_1HWC = pos_embed_1PC.reshape(1, side, side, -1)
    if resize == "bicubic":
        return resized_positions(pos_1HWC, size)
    times = [-(-length // side) for length in size]
    return pos_1HWC.repeat(1, *times, 1)[:, : size[0], : size[1]]


def resized_positions(pos_1HWC: Tensor, size: tuple[int, int]) -> Tensor:
    """Positions for a map of `size` rows and columns, (1, H, W, C). Bicubic, as in detectron2."""
    if size == tuple(pos_1HWC.shape[1:3]):
        return pos_1HWC
    pos_1CHW = F.interpolate(
        pos_1HWC.permute(0, 3, 1, 2), size=size, mode="bicubic", align_corners=False
    )
    return pos_1CHW.permute(0, 2, 3, 1)


def resized_table(table_LD: Tensor, length: int) -> Tensor:
    """Relative positions of an axis of `length` tokens: (2 * length - 1, D), resized linearly."""
    wanted = 2 * length - 1
    if table_LD.shape[0] == wanted:
        return table_LD
    return F.interpolate(table_LD.T[None], size=wanted, mode="linear")[0].T


def relative_positions(table_LD: Tensor, length: int) -> Tensor:
    """Embedding of every (query, key) offset along one axis.

    Args:
        table_LD: (L, D), L = 2 * trained length - 1, resized linearly for another length.
        length: tokens along the axis.

    Returns:
        (length, length, D): entry (q, k) is the embedding of offset q - k.
    """
    # Views: the gradient of reading by an index is a slow sum of its own on a GPU.
    by_key_last = resized_table(table_LD, length).unfold(0, length, 1)
    return by_key_last.flip(-1).transpose(1, 2)


def relative_terms(
    q_GMND: Tensor, table_h: Tensor, table_w: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """What decomposed relative positions (MViTv2, arXiv:2112.01526) add to the scores.

    Args:
        q_GMND: unscaled queries, N = h * w tokens.
        table_h, table_w: (2 * length - 1, D) per axis.
        size: (h, w) of the group.

    Returns:
        q . Rh[row offset], (G, M, h, w, h), by query and row of the key; and
        q . Rw[column offset], (G, M, h, w, w), by query and column of the key.
    """
    q_GMhwD = q_GMND.unflatten(2, size)
    rows, columns = relative_positions(table_h, size[0]), relative_positions(table_w, size[1])
    return (
        torch.einsum("gmhwd,hkd->gmhwk", q_GMhwD, rows),
        torch.einsum("gmhwd,wkd->gmhwk", q_GMhwD, columns),
    )


def relative_position_bias(
    q_GMND: Tensor, table_h: Tensor, table_w: Tensor, size: tuple[int, int]
) -> Tensor:
    """The sum of `relative_terms` for every pair of tokens: (G, M, N, N)."""
    rel_h, rel_w = relative_terms(q_GMND, table_h, table_w, size)
    return (rel_h[..., :, None] + rel_w[..., None, :]).flatten(4).flatten(2, 3)
