"""`triton_attention`'s kernels called on tensors. Imports triton: only what runs them imports this
module."""

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import triton_kernels
from .gpu_attention import INTERPRETED

_KEYS = 64  # of a tile
_MANY_TOKENS = 512  # of a group: with more, the forward pass has larger tiles of queries
_LOG2E = 1.4426950408889634
_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


class _Work:
    """What all kernels are called with, and how the work is cut."""

    def __init__(self, qkv_BTE, pad_E, index_GN, labels_GN, terms_MTL, num_heads, h, w):
        B, T, E = qkv_BTE.shape
        D = E // num_heads // 3
        if terms_MTL is None:
            h, w = h * w, 1  # the order of places is all that counts
        G = 1 if index_GN is None else len(index_GN)
        self.units, self.N = B * G * num_heads, h * w
        self.cols = min(triton.next_power_of_2(w), _KEYS)
        self.rows = _KEYS // self.cols
        self.key_tiles = triton.cdiv(h, self.rows) * triton.cdiv(w, self.cols)
        self.chunks = w > self.cols
        first = max(16, triton.next_power_of_2(D + 1) // 2)
        rest = 0 if first >= D else max(16, triton.next_power_of_2(D - first))
        self.natural = D**-0.5
        self.none = qkv_BTE  # stands for a tensor that is not there, and is not read
        dot = _TYPES[qkv_BTE.dtype]
        self.words = dict(
            qkv=qkv_BTE,
            pad=self._or_none(pad_E),
            index=self._or_none(index_GN, torch.int32),
            labels=self._or_none(labels_GN, torch.int32),
            terms=self._or_none(terms_MTL),
            scale=self.natural * _LOG2E,
            B=B, T=T, G=G, h=h, w=w, M=num_heads,
            L=1 if terms_MTL is None else terms_MTL.shape[2],
            D=D, D1=first, D2=rest, ROWS=self.rows, COLS=self.cols,
            INDEX=index_GN is not None,
            PADDED=pad_E is not None,
            LABELS=labels_GN is not None,
            TERMS=terms_MTL is not None,
            DOT=tl.float32 if INTERPRETED else dot,  # which computes bfloat16 products wrongly
        )  # fmt: skip
        self.stages = 2 if dot is tl.float32 else 3

    def _or_none(self, x: Tensor | None, dtype: torch.dtype | None = None) -> Tensor:
        return self.none if x is None else x.to(dtype or x.dtype).contiguous()

    def query_tiles(self, size: int) -> int:
        return self.units * triton.cdiv(self.N, size)


def _on(x: Tensor) -> contextlib.AbstractContextManager:
    """Triton launches on the current device."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def forward(
    qkv_BTE: Tensor,
    pad_E: Tensor | None,
    index_GN: Tensor | None,
    labels_GN: Tensor | None,
    terms_MTL: Tensor | None,
    num_heads: int,
    h: int,
    w: int,
) -> tuple[Tensor, Tensor]:
    """Output (B, T, M * D) and log-sum-exp (M, B * T) in base 2, of `triton_attention`."""
    B, T, E = qkv_BTE.shape
    out = qkv_BTE.new_empty(B, T, E // 3)
    lse = qkv_BTE.new_empty(num_heads, B * T, dtype=torch.float32)
    if not out.numel():
        return out, lse
    work = _Work(qkv_BTE, pad_E, index_GN, labels_GN, terms_MTL, num_heads, h, w)
    tile, warps = (128, 8) if work.N > _MANY_TOKENS else (64, 4)
    with _on(qkv_BTE):
        triton_kernels.forward[(work.query_tiles(tile),)](
            out=out, lse=lse, **work.words, BM=tile, num_warps=warps, num_stages=work.stages
        )
    return out, lse


def backward(
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
    """Gradients of `qkv_BTE`, `pad_E` and `terms_MTL`; empty ones for what is None."""
    grad_qkv = torch.empty_like(qkv_BTE)
    grad_pad = qkv_BTE.new_zeros(() if pad_E is None else pad_E.shape)
    # Each query has a gradient for the offsets within its group only; zero for others.
    grad_terms = qkv_BTE.new_zeros(() if terms_MTL is None else terms_MTL.shape)
    if not grad_qkv.numel():
        return grad_qkv, grad_pad, grad_terms
    work = _Work(qkv_BTE, pad_E, index_GN, labels_GN, terms_MTL, num_heads, h, w)
    D, key_programs = work.words["D"], work.units * work.key_tiles
    of_padding = lse_MT.new_empty((key_programs, 2, D) if pad_E is not None else 1)
    delta = torch.empty_like(lse_MT)
    words = dict(grad=grad_BTC, lse=lse_MT, delta=delta, grad_qkv=grad_qkv, natural=work.natural)
    words |= work.words | dict(BM=64, num_warps=4, num_stages=2)
    with _on(qkv_BTE):
        triton_kernels.backward_queries[(work.query_tiles(64),)](
            out=out_BTC, grad_terms=grad_terms, CHUNKS=work.chunks, **words
        )
        triton_kernels.backward_keys[(key_programs,)](grad_pad=of_padding, **words)
    if pad_E is not None:
        # No query of padding has an output: its q has no gradient.
        by_head_M2D = of_padding.view(-1, num_heads, work.key_tiles, 2, D).sum((0, 2))
        grad_pad.view(3, num_heads, D)[1:] = by_head_M2D.transpose(0, 1)
    return grad_qkv, grad_pad, grad_terms
