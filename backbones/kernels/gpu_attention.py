"""Attention on a GPU."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..positions import relative_terms
from .relative import onehot_keys


def folded_attention(
    q_GMND: Tensor,
    k_GMND: Tensor,
    v_GMND: Tensor,
    tables: tuple[Tensor, Tensor] | None,
    mask_GNN: Tensor | None,
    size: tuple[int, int],
) -> Tensor:
    """Attention by torch's `scaled_dot_product_attention`, without a bias tensor.

    The relative positions of query i and key j, q . Rh[row offset] + q . Rw[column offset], are a
    product too: of the query's terms for every row and column with the key's row and column as
    one-hot vectors. Both are appended to the channels of q and k, D + h + w in all, so any kernel
    that never holds the (N, N) scores computes them too, with the terms in the precision of q.

    Args:
        q_GMND, k_GMND, v_GMND: (G, M, N, D), unscaled.
        tables: relative positions per axis, (2 * length - 1, D), or None.
        mask_GNN: True where a token may see another, or None.
        size: (h, w) of a group.

    Returns:
        (G, M, N, D).
    """
    mask = None if mask_GNN is None else mask_GNN[:, None]
    if tables is None:
        return F.scaled_dot_product_attention(q_GMND, k_GMND, v_GMND, attn_mask=mask)
    h, w = size
    G, M, _, D = q_GMND.shape
    rel_h, rel_w = relative_terms(q_GMND, *tables, size)
    onehot = onehot_keys(h, w, k_GMND)
    fill = -(D + h + w) % 8  # kernels want multiples of 8
    q = torch.cat([q_GMND * D**-0.5, rel_h.flatten(2, 3), rel_w.flatten(2, 3)], -1)
    k = torch.cat([k_GMND, onehot.expand(G, M, -1, -1)], -1)
    q, k, v = F.pad(q, (0, fill)), F.pad(k, (0, fill)), F.pad(v_GMND, (0, h + w + fill))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)[..., :D]
