"""Positions and patch embeddings of a file for another number of positions or pixels."""

import math
import re
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoder import Encoder
from ..positions import resized_positions, resized_table
from .contents import Contents, WeightsError, square_grid


def own_grid(pos_embed_1PC: Tensor, encoder: nn.Module) -> tuple[int, int]:
    """Rows and columns of an encoder's own positions."""
    side = math.isqrt(pos_embed_1PC.shape[1] - encoder.pretrain_use_cls_token)
    return side, side


def to_shape(
    key: str, tensor: Tensor, wanted: torch.Size, encoder: nn.Module, contents: Contents
) -> tuple[Tensor | None, str]:
    """A tensor for another number of positions or pixels and what was done; None if it is no such
    tensor."""
    if not isinstance(encoder, Encoder) or tensor.ndim != len(wanted) or not tensor.numel():
        return None, ""
    if key.endswith("pos_embed") and tensor.shape[2] == wanted[2]:
        return _positions(tensor, encoder, contents)
    if re.search(r"\.rel_pos_[hw]$", key) and tensor.shape[1] == wanted[1]:
        how = f"{tensor.shape[0]} -> {wanted[0]} offsets, linear"
        return resized_table(tensor, (wanted[0] + 1) // 2), how
    if key.endswith("patch_embed.proj.weight") and tensor.shape[:2] == wanted[:2]:
        how = f"{by(tensor.shape[2:])} -> {by(wanted[2:])} pixels, pseudo-inverse"
        return resized_patches(tensor, tuple(wanted[2:])), how
    return None, ""


def is_other_grid(contents: Contents) -> bool:
    """Whether positions are of no square, as the module's are: as many may be at other places."""
    return contents.grid is not None and contents.grid[0] != contents.grid[1]


def _positions(pos_1PC: Tensor, encoder: Encoder, contents: Contents) -> tuple[Tensor, str]:
    patches_1PC = pos_1PC[:, contents.prefix :]
    grid = contents.grid or square_grid(patches_1PC.shape[1])
    if not grid or math.prod(grid) != patches_1PC.shape[1]:
        raise WeightsError(
            f"{contents.path}: {patches_1PC.shape[1]} absolute positions are no square of patches"
        )
    wanted = own_grid(encoder.pos_embed, encoder)
    resized = resized_positions(patches_1PC.unflatten(1, grid), wanted).flatten(1, 2)
    how = f"{by(grid)} -> {by(wanted)}, bicubic" if grid != wanted else ""
    if encoder.pretrain_use_cls_token:
        cls_11C = pos_1PC[:, :1] if contents.prefix else torch.zeros_like(pos_1PC[:, :1])
        resized = torch.cat([cls_11C, resized], 1)
    return resized, how or "cls token's entry, which detection does not read"


def resized_patches(kernel_ECpp: Tensor, wanted: tuple[int, int]) -> Tensor:
    """Patch embedding for patches of another size: (E, C, *wanted).

    The kernel whose token of an enlarged patch is the old kernel's token of the patch before; its
    pseudo-inverse when shrinking (FlexiViT, arXiv:2212.08013, section 3.4).
    """
    old = tuple(kernel_ECpp.shape[2:])
    basis = torch.eye(math.prod(old), dtype=torch.float64).reshape(-1, 1, *old)
    enlarge = F.interpolate(basis, wanted, mode="bicubic", antialias=True, align_corners=False)
    inverse = torch.linalg.pinv(enlarge.flatten(1))  # (new pixels, old pixels)
    resized = kernel_ECpp.flatten(2).double() @ inverse.T
    return resized.unflatten(2, wanted).to(kernel_ECpp.dtype)


def by(shape: Iterable[int]) -> str:
    """ "14x14" """
    return "x".join(map(str, shape)) or "one number"
