"""Attention on a GPU: by torch's kernels, and by a Triton operator. `WHERE` says which runs."""

import contextlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import register_flop_formula

from ..partition import LABELS, UNSEEN, Partition
from ..positions import relative_terms
from .cpu_attention import group_flops
from .relative import onehot_keys

# A score's share of the softmax is zero when it is so much less; exact in bfloat16 and float16.
_HIDDEN = -(2.0**15)


def folded_attention(
    q_GMND: Tensor,
    k_GMND: Tensor,
    v_GMND: Tensor,
    tables: tuple[Tensor, Tensor] | None,
    visible: Tensor | None,
    size: tuple[int, int],
    narrow: bool = False,
) -> Tensor:
    """Attention by torch's `scaled_dot_product_attention`, without a bias tensor.

    The relative positions of query i and key j, q . Rh[row offset] + q . Rw[column offset], are a
    product too: of the query's terms for every row and column with the key's row and column as
    one-hot vectors. Both are appended to the channels of q and k, D + h + w in all, so any kernel
    that never holds the (N, N) scores computes them too, with the terms in the precision of q.
    Labels are channels likewise: 0 for a key with the query's own, else much less than any score.

    Args:
        q_GMND, k_GMND, v_GMND: (G, M, N, D), unscaled.
        tables: relative positions per axis, (2 * length - 1, D), or None.
        visible: (G, N, N), True where a token may see another; (G, N), labels as of
            `Partition.labels`; or None.
        size: (h, w) of a group.
        narrow: v is filled up to 128 channels, not to those of q, if q has more: cuDNN's backward
            pass on Hopper takes 192 and 128.

    Returns:
        (G, M, N, D).
    """
    mask = visible[:, None] if visible is not None and visible.ndim == 3 else None
    labels_GN = visible if visible is not None and visible.ndim == 2 else None
    if tables is None and labels_GN is None:
        return F.scaled_dot_product_attention(q_GMND, k_GMND, v_GMND, attn_mask=mask)
    h, w = size
    G, M, _, D = q_GMND.shape
    q, k = [q_GMND * D**-0.5], [k_GMND]
    if tables is not None:
        rel_h, rel_w = relative_terms(q_GMND, *tables, size)
        q += [rel_h.flatten(2, 3), rel_w.flatten(2, 3)]
        k += [onehot_keys(h, w, k_GMND).expand(G, M, -1, -1)]
    if labels_GN is not None:
        numbers = torch.arange(LABELS, device=labels_GN.device)
        label_G1N1 = labels_GN[:, None, :, None]
        own, unseen = label_G1N1 == numbers, label_G1N1 == UNSEEN
        # What none sees sees all: its scores stay numbers.
        q += [(~own & ~unseen).to(q_GMND.dtype).expand(-1, M, -1, -1) * _HIDDEN]
        k += [(own | unseen).to(k_GMND.dtype).expand(-1, M, -1, -1)]
    q, k = torch.cat(q, -1), torch.cat(k, -1)
    fill = -q.shape[-1] % 8  # kernels want multiples of 8
    q, k = F.pad(q, (0, fill)), F.pad(k, (0, fill))
    channels = min(q.shape[-1], max(D, 128)) if narrow else q.shape[-1]
    v = F.pad(v_GMND, (0, channels - D))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)[..., :D]


# ---- Which kernel runs where ------------------------------------------------------------------


@dataclass(frozen=True)
class Grouped:
    """`folded_attention`, by one of torch's kernels or by that which torch chooses."""

    backend: SDPBackend | None = None
    narrow: bool = False
    labels: bool = False  # instead of a mask

    def visible(self, partition: Partition) -> Callable[[int, int, torch.device], Tensor | None]:
        """What says which token sees which."""
        return partition.labels if self.labels else partition.mask

    def __call__(self, *args) -> Tensor:
        with contextlib.nullcontext() if self.backend is None else sdpa_kernel(self.backend):
            return folded_attention(*args, narrow=self.narrow)


_BACKENDS = {
    "": None,
    " flash": SDPBackend.FLASH_ATTENTION,
    " cudnn": SDPBackend.CUDNN_ATTENTION,
    " efficient": SDPBackend.EFFICIENT_ATTENTION,
    " math": SDPBackend.MATH,
}
# Kernels of q, k and v in groups. `narrow` and `labels` are there for cuDNN and flash attention.
GROUPED = {f"folded{word}": Grouped(backend) for word, backend in _BACKENDS.items()}
GROUPED |= {
    f"{form}{word}": Grouped(_BACKENDS[word], narrow=form == "narrow", labels=form == "labelled")
    for form, words in {"narrow": ("", " cudnn"), "labelled": ("", " cudnn", " flash")}.items()
    for word in words
}
TRITON = "triton"


@dataclass(frozen=True)
class Choice:
    kernel: str  # of `GROUPED`, or TRITON
    measured: str  # the page of results/benchmarks/ where it was the best


_NOT_MEASURED = Choice("folded", "not measured")
# What `attention="fused"` runs on a GPU. Without a measurement torch's choice is left alone.
WHERE: dict[tuple[bool, str], Choice] = {
    # (relative positions, groups)
    (True, "global"): _NOT_MEASURED,
    (True, "windows"): _NOT_MEASURED,
    (True, "labelled"): _NOT_MEASURED,  # shifted windows
    (False, "global"): _NOT_MEASURED,
    (False, "windows"): _NOT_MEASURED,
    (False, "labelled"): _NOT_MEASURED,
}


# ---- Attention with decomposed relative positions, by Triton ------------------------------------

_TRITON = importlib.util.find_spec("triton") is not None
# Triton on a CPU, read where triton is imported too: once in a process.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_CHANNELS = 128  # of a head, at most: what a program holds


def runs_triton(x: Tensor, head_channels: int) -> bool:
    """Whether `triton_attention` is there for values like those of `x`.

    On the meta device it always is: what a step costs on a GPU does not depend on the machine that
    counts it.
    """
    if x.dtype == torch.float64 or head_channels > _CHANNELS:
        return False
    if x.device.type == "meta":
        return True
    return _TRITON and (x.device.type == "cuda" or (x.device.type == "cpu" and INTERPRETED))


def triton_attention(
    qkv_BTE: Tensor,
    pad_E: Tensor | None,
    index_GN: Tensor | None,
    tables_LD: Tensor | None,
    labels_GN: Tensor | None,
    num_heads: int,
    h: int,
    w: int,
) -> Tensor:
    """Attention within groups, read from and written to the map, without scores in memory.

    The relative positions of a query for all offsets are one product of q in the map's order with
    the tables; the kernels read from it what a tile needs. The backward pass makes scores again and
    adds nothing atomically: its gradients are the same each time.

    Args:
        qkv_BTE, pad_E, index_GN, tables_LD, num_heads, h, w: as of `chunked_attention`.
        labels_GN: as of `Partition.labels`, or None.

    Returns:
        (B, T, M * D), with a first derivative in reverse mode only; others raise RuntimeError.
    """
    tensors = (qkv_BTE.contiguous(), pad_E, index_GN, tables_LD, labels_GN)
    return _TritonAttention.apply(*tensors, num_heads, h, w)[0]


class _TritonAttention(torch.autograd.Function):
    @staticmethod
    def forward(qkv_BTE, pad_E, index_GN, tables_LD, labels_GN, num_heads, h, w):
        terms_MTL = _terms(qkv_BTE, tables_LD, num_heads)
        return _forward(qkv_BTE, pad_E, index_GN, labels_GN, terms_MTL, num_heads, h, w)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs[:5], *output)
        ctx.sizes = inputs[5:]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BTC, _):
        qkv_BTE, pad_E, index_GN, tables_LD, labels_GN, out_BTC, lse_MT = ctx.saved_tensors
        num_heads = ctx.sizes[0]
        terms_MTL = _terms(qkv_BTE, tables_LD, num_heads)
        grad_qkv, grad_pad, grad_terms = _backward(
            *(grad_BTC.contiguous(), qkv_BTE, pad_E, index_GN, labels_GN, terms_MTL),
            *(out_BTC, lse_MT, *ctx.sizes),
        )
        grad_tables = None
        if tables_LD is not None:
            q_MTD = _queries(qkv_BTE, num_heads)
            tables_MLD = _filled(tables_LD).expand(num_heads, -1, -1)
            _queries(grad_qkv, num_heads).add_(torch.bmm(grad_terms, tables_MLD))
            grad_tables = torch.bmm(grad_terms.mT, q_MTD).sum(0)[: len(tables_LD)]
        grad_pad = None if pad_E is None else grad_pad
        return grad_qkv, grad_pad, None, grad_tables, None, None, None, None


def _queries(qkv_BTE: Tensor, num_heads: int) -> Tensor:
    """A view: (M, B * T, D)."""
    return qkv_BTE.flatten(0, 1).unflatten(1, (3, num_heads, -1))[:, 0].transpose(0, 1)


def _filled(tables_LD: Tensor) -> Tensor:
    """Up to a multiple of 8 offsets, for rows of terms that products write fast."""
    return F.pad(tables_LD, (0, 0, 0, -len(tables_LD) % 8))


def _terms(qkv_BTE: Tensor, tables_LD: Tensor | None, num_heads: int) -> Tensor | None:
    """(M, B * T, L): q . R of each query for each offset, of rows and of columns."""
    if tables_LD is None:
        return None
    tables_MDL = _filled(tables_LD).T.expand(num_heads, -1, -1)
    return torch.bmm(_queries(qkv_BTE, num_heads), tables_MDL)


# Operators, so that torch.compile and torch.export take each for one node. The first one that runs
# imports triton.
@torch.library.custom_op("backbones::triton_attention", mutates_args=())
def _forward(
    qkv_BTE: Tensor,
    pad_E: Tensor | None,
    index_GN: Tensor | None,
    labels_GN: Tensor | None,
    terms_MTL: Tensor | None,
    num_heads: int,
    h: int,
    w: int,
) -> tuple[Tensor, Tensor]:
    from . import triton_launch

    return triton_launch.forward(qkv_BTE, pad_E, index_GN, labels_GN, terms_MTL, num_heads, h, w)


@torch.library.custom_op("backbones::triton_attention_backward", mutates_args=())
def _backward(
    grad_BTC: Tensor,
    qkv_BTE: Tensor,
    pad_E: Tensor | None,
    index_GN: Tensor | None,
    labels_GN: Tensor | None,
    terms_MTL: Tensor | None,
    out_BTC: Tensor,
    lse_MT: Tensor,
    num_heads: int,
    h: int,
    w: int,
) -> tuple[Tensor, Tensor, Tensor]:
    from . import triton_launch

    return triton_launch.backward(
        *(grad_BTC, qkv_BTE, pad_E, index_GN, labels_GN, terms_MTL, out_BTC, lse_MT),
        *(num_heads, h, w),
    )


@_forward.register_fake
def _(qkv_BTE, pad_E, index_GN, labels_GN, terms_MTL, num_heads, *_):
    B, T, E = qkv_BTE.shape
    lse_MT = qkv_BTE.new_empty(num_heads, B * T, dtype=torch.float32)
    return qkv_BTE.new_empty(B, T, E // 3), lse_MT


@_backward.register_fake
def _(grad_BTC, qkv_BTE, pad_E, index_GN, labels_GN, terms_MTL, *_):
    return tuple(
        qkv_BTE.new_empty(() if x is None else x.shape) for x in (qkv_BTE, pad_E, terms_MTL)
    )


# Products that the kernels compute, of each token with the group's N; torch's own make the terms.
@register_flop_formula(torch.ops.backbones.triton_attention)
def _forward_flops(qkv_BTE, pad_E, index_GN, labels_GN, terms, num_heads, h, w, out_shape=None):
    return group_flops(qkv_BTE, index_GN, 2 * h * w)


@register_flop_formula(torch.ops.backbones.triton_attention_backward)
def _backward_flops(
    grad, qkv_BTE, pad_E, index_GN, labels, terms, out, lse, M, h, w, out_shape=None
):
    return group_flops(qkv_BTE, index_GN, 7 * h * w)  # both kernels make scores and their gradient
