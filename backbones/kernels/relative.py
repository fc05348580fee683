"""Decomposed relative positions in the forms that kernels take them."""

import torch
from torch import Tensor


def onehot_keys(h: int, w: int, like: Tensor) -> Tensor:
    """(N, h + w): the row and the column of each token of a group, each as a one-hot vector."""
    eye_h = torch.eye(h, dtype=like.dtype, device=like.device)
    eye_w = torch.eye(w, dtype=like.dtype, device=like.device)
    return torch.cat([eye_h[:, None].expand(h, w, h), eye_w.expand(h, w, w)], -1).flatten(0, 1)


def relative_tables(table_h: Tensor, table_w: Tensor) -> Tensor:
    """(2h - 1, D) and (2w - 1, D) -> (L, D), each from the last key before the query to the first
    behind it, so that the terms of one query lie side by side for consecutive keys."""
    return torch.cat([table_h.flip(0), table_w.flip(0)])
