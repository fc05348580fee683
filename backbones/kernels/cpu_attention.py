"""Attention on a CPU: over chunks of scores that stay in the cache."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from .linear_layers import linear
from .relative import onehot_keys

# Scores that a core works on at a time. More miss the cache, fewer make small products.
_CHUNK_BYTES = 4 * 2**20
_ALL_CHUNKS_BYTES = 64 * 2**20  # on many cores
# Tokens of a float32 map without relative positions from which torch's kernel is faster forward
# (`make bench SUITE=rotary`, EVA-02).
_TORCHS_TOKENS = 1024


def chunked_attention(
    qkv_BTE: Tensor,
    pad_E: Tensor | None,
    index_GN: Tensor | None,
    tables_LD: Tensor | None,
    mask_GNN: Tensor | None,
    num_heads: int,
    h: int,
    w: int,
) -> Tensor:
    """Attention within groups, read from and written to the map, a chunk of scores at a time.

    The scores of a chunk are made, biased, soft-maxed and used while they are in the cache, in one
    buffer. Grouping is part of the reading: no copy of the map in group order is made. The backward
    pass makes the scores again. Forward, large plain maps are torch's kernel's, see
    `_TORCHS_TOKENS`.

    Args:
        qkv_BTE: (B, T, 3 * M * D), q, k and v of every token, unscaled.
        pad_E: q, k and v of a padding token; needed if `index_GN` has padding.
        index_GN: tokens of each group of an image, -1 for padding; None: one group, in order.
        tables_LD: relative positions as of `relative_tables`, or None.
        mask_GNN: True where a token may see another, or None.
        num_heads, h, w: heads; rows and columns of a group, N = h * w.

    Returns:
        (B, T, M * D), with a first derivative in reverse mode only; others raise RuntimeError.
    """
    tensors = (qkv_BTE.contiguous(), pad_E, index_GN, tables_LD, mask_GNN)
    return _ChunkedAttention.apply(*tensors, num_heads, h, w)


class _ChunkedAttention(torch.autograd.Function):
    """The derivative of `_forward`. By the operators' own `register_autograd`, torch.func would be
    refused its gradients and get forward-mode derivatives of zero."""

    @staticmethod
    def forward(*inputs):
        return _forward(*inputs)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:5])
        ctx.sizes = inputs[5:]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BTC):
        qkv_BTE, pad_E, index_GN, tables_LD, mask_GNN = ctx.saved_tensors
        grad_qkv, grad_pad, grad_tables = _backward(
            grad_BTC, qkv_BTE, pad_E, index_GN, tables_LD, mask_GNN, *ctx.sizes
        )
        grad_pad = None if pad_E is None else grad_pad
        grad_tables = None if tables_LD is None else grad_tables
        return grad_qkv, grad_pad, None, grad_tables, None, None, None, None


# Operators, so that torch.compile and torch.export take each for one node.
@torch.library.custom_op("backbones::chunked_attention", mutates_args=(), device_types="cpu")
def _forward(
    qkv_BTE: Tensor,
    pad_E: Tensor | None,
    index_GN: Tensor | None,
    tables_LD: Tensor | None,
    mask_GNN: Tensor | None,
    num_heads: int,
    h: int,
    w: int,
) -> Tensor:
    plain = index_GN is None and tables_LD is None and mask_GNN is None
    if plain and qkv_BTE.dtype == torch.float32 and h * w >= _TORCHS_TOKENS:
        q, k, v = qkv_BTE.unflatten(2, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    chunks = _Chunks(1, qkv_BTE, pad_E, index_GN, tables_LD, mask_GNN, num_heads, h, w)
    qkv_TE = qkv_BTE.flatten(0, 1)
    out_TC = qkv_TE.new_empty(qkv_TE.shape[0], num_heads * chunks.D)
    for groups in chunks.groups():
        qkv, out = chunks.read(qkv_TE, groups, pad_E), chunks.room_for(out_TC, groups)
        for heads in chunks.heads():
            q, k, v = chunks.to_heads(qkv, heads)
            terms, o_UND = chunks.terms(q), torch.empty_like(q)
            for n in chunks.queries():
                p_UnN = chunks.probabilities(q, k, terms, groups, n)
                torch.bmm(p_UnN, v, out=o_UND[:, n])
            chunks.from_heads((o_UND,), out, heads)
        chunks.write(out, out_TC, groups)
    return out_TC.unflatten(0, qkv_BTE.shape[:2])


@torch.library.custom_op(
    "backbones::chunked_attention_backward", mutates_args=(), device_types="cpu"
)
def _backward(
    grad_BTC: Tensor,
    qkv_BTE: Tensor,
    pad_E: Tensor | None,
    index_GN: Tensor | None,
    tables_LD: Tensor | None,
    mask_GNN: Tensor | None,
    num_heads: int,
    h: int,
    w: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `qkv_BTE`, `pad_E` and `tables_LD`; empty ones for what is None."""
    chunks = _Chunks(2, qkv_BTE, pad_E, index_GN, tables_LD, mask_GNN, num_heads, h, w)
    qkv_TE, grad_TC = qkv_BTE.flatten(0, 1), grad_BTC.flatten(0, 1)
    grad_qkv_TE = torch.empty_like(qkv_TE)
    exact = torch.promote_types(qkv_TE.dtype, torch.float32)  # of sums over chunks
    grad_pad = qkv_TE.new_zeros(() if pad_E is None else pad_E.shape, dtype=exact)
    grad_tables = qkv_TE.new_zeros(() if tables_LD is None else tables_LD.shape, dtype=exact)
    for groups in chunks.groups():
        qkv, grad_out = chunks.read(qkv_TE, groups, pad_E), chunks.read(grad_TC, groups, 0)
        grad_qkv = chunks.room_for(grad_qkv_TE, groups)
        for heads in chunks.heads():
            q, k, v = chunks.to_heads(qkv, heads)
            (grad_o,) = chunks.to_heads(grad_out, heads)
            terms, grad_q = chunks.terms(q), torch.empty_like(q)
            grad_k, grad_v = torch.zeros_like(k, dtype=exact), torch.zeros_like(v, dtype=exact)
            for n in chunks.queries():
                p = chunks.probabilities(q, k, terms, groups, n)
                grad_v += torch.bmm(p.mT, grad_o[:, n])
                grad_s = chunks.gradient_of_scores(p, grad_o[:, n], v)
                torch.bmm(grad_s, k, out=grad_q[:, n]).mul_(chunks.scale)
                grad_k += torch.bmm(grad_s.mT, q[:, n]).mul_(chunks.scale)
                if tables_LD is not None:
                    grad_terms = chunks.gradient_of_terms(grad_s, n)
                    grad_q[:, n] += grad_terms @ tables_LD
                    grad_tables += grad_terms.flatten(0, 1).T @ q[:, n].flatten(0, 1)
            chunks.from_heads((grad_q, grad_k, grad_v), grad_qkv, heads)
        if pad_E is not None:
            grad_pad += grad_qkv[chunks.index_GN[groups].flatten() < 0].sum(0, dtype=exact)
        chunks.write(grad_qkv, grad_qkv_TE, groups)
    dtype = qkv_TE.dtype
    return grad_qkv_TE.view_as(qkv_BTE), grad_pad.to(dtype), grad_tables.to(dtype)


@_forward.register_fake
def _(qkv_BTE, *_):
    return qkv_BTE.new_empty(*qkv_BTE.shape[:2], qkv_BTE.shape[2] // 3)


@_backward.register_fake
def _(grad_BTC, qkv_BTE, pad_E, index_GN, tables_LD, *_):
    return tuple(
        qkv_BTE.new_empty(() if x is None else x.shape) for x in (qkv_BTE, pad_E, tables_LD)
    )


# torch's counter takes an operator without a formula for free. As for torch's own attention, the
# products of the textbook form count, of each token with the group's N and the tables' h + w.
@register_flop_formula(torch.ops.backbones.chunked_attention)
def _forward_flops(qkv_BTE, pad_E, index_GN, tables_LD, mask, num_heads, h, w, out_shape=None):
    positions = 0 if tables_LD is None else h + w
    return group_flops(qkv_BTE, index_GN, 2 * h * w + positions)


@register_flop_formula(torch.ops.backbones.chunked_attention_backward)
def _backward_flops(grad, qkv_BTE, pad_E, index_GN, tables_LD, mask, M, h, w, out_shape=None):
    positions = 0 if tables_LD is None else h + w
    return group_flops(qkv_BTE, index_GN, 5 * h * w + 3 * positions)  # scores and terms made again


def group_flops(qkv_BTE: torch.Size, index_GN: torch.Size | None, per_channel: int) -> int:
    B, T, E = qkv_BTE
    tokens = T if index_GN is None else index_GN.numel()
    return 2 * B * tokens * (E // 3) * per_channel


class _Chunks:
    """How the work of `chunked_attention` is cut, and the steps that both directions share."""

    def __init__(self, buffers, qkv_BTE, pad_E, index_GN, tables_LD, mask_GNN, num_heads, h, w):
        B, T, E = qkv_BTE.shape
        self.h, self.w, self.N, self.M, self.D = h, w, h * w, num_heads, E // num_heads // 3
        self.scale = self.D**-0.5
        # A sum over broadcast bfloat16 is slow on a CPU: for few terms a product with one-hot keys,
        # the row and the column of each, is faster.
        self.onehot_KN = None
        if tables_LD is not None and tables_LD.dtype == torch.bfloat16 and h + w < self.D:
            self.onehot_KN = onehot_keys(h, w, tables_LD).T
        self.tables_LD, self.mask_GNN = tables_LD, mask_GNN
        self.padded = pad_E is not None
        self.index_GN = None
        self.G = B
        if index_GN is not None:
            first_B11 = torch.arange(0, B * T, T)[:, None, None]
            self.index_GN = torch.where(index_GN < 0, -1, index_GN + first_B11).flatten(0, 1)
            self.G = B * len(index_GN)
        threads = torch.get_num_threads()
        scores = min(threads * _CHUNK_BYTES, _ALL_CHUNKS_BYTES) // qkv_BTE.element_size()
        self.groups_at_once = max(1, scores // (num_heads * self.N**2))
        self.heads_at_once = num_heads
        if num_heads * self.N**2 > scores:
            self.heads_at_once = min(num_heads, max(threads, scores // self.N**2))
        self.rows_at_once = min(h, max(1, scores // (self.heads_at_once * self.N * w)))
        largest = min(self.groups_at_once, self.G) * self.heads_at_once * self.rows_at_once * w
        self.buffers = qkv_BTE.new_empty(buffers, largest * self.N)

    def groups(self) -> Iterator[slice]:
        for g in range(0, self.G, self.groups_at_once):
            yield slice(g, min(g + self.groups_at_once, self.G))

    def heads(self) -> Iterator[slice]:
        for m in range(0, self.M, self.heads_at_once):
            yield slice(m, min(m + self.heads_at_once, self.M))

    def queries(self) -> Iterator[slice]:
        """Tokens of whole rows."""
        step = self.rows_at_once * self.w
        for n in range(0, self.N, step):
            yield slice(n, min(n + step, self.N))

    def room_for(self, x_TE: Tensor, groups: slice) -> Tensor:
        """Memory for the tokens of `groups`: (tokens, E), in `x_TE` itself where that does."""
        if self.index_GN is None:
            return x_TE[groups.start * self.N : groups.stop * self.N]
        return x_TE.new_empty((groups.stop - groups.start) * self.N, x_TE.shape[1])

    def read(self, x_TE: Tensor, groups: slice, padding: Tensor | int | None) -> Tensor:
        """The tokens of `groups`, group by group: (tokens, E)."""
        if self.index_GN is None:
            return x_TE[groups.start * self.N : groups.stop * self.N]
        tokens = self.index_GN[groups].flatten()
        if not self.padded:
            return x_TE.index_select(0, tokens)
        rows = x_TE.index_select(0, tokens.clamp(min=0))
        rows[tokens < 0] = padding
        return rows

    def write(self, rows: Tensor, x_TE: Tensor, groups: slice) -> None:
        """Back to their places; padding is dropped."""
        if self.index_GN is None:
            return
        tokens = self.index_GN[groups].flatten()
        if self.padded:
            rows, tokens = rows[tokens >= 0], tokens[tokens >= 0]
        x_TE.index_copy_(0, tokens, rows)

    def to_heads(self, rows: Tensor, heads: slice) -> tuple[Tensor, ...]:
        """(tokens, K * M * D) -> K tensors (U, N, D)."""
        x = rows.view(-1, self.N, rows.shape[1] // (self.M * self.D), self.M, self.D)
        return x[:, :, :, heads].permute(2, 0, 3, 1, 4).flatten(1, 2).contiguous().unbind()

    def from_heads(self, xs: tuple[Tensor, ...], rows: Tensor, heads: slice) -> None:
        """The inverse of `to_heads`, into `rows`."""
        to = rows.view(-1, self.N, len(xs), self.M, self.D)
        for i, x_UND in enumerate(xs):
            to[:, :, i, heads] = x_UND.unflatten(0, (to.shape[0], -1)).transpose(1, 2)

    def terms(self, q_UND: Tensor) -> Tensor | None:
        """(U, N, L): what relative positions add to the scores, by query and offset."""
        if self.tables_LD is None:
            return None
        return linear(q_UND[None], self.tables_LD)[0]

    def probabilities(
        self, q_UND: Tensor, k_UND: Tensor, terms_UNL: Tensor | None, groups: slice, n: slice
    ) -> Tensor:
        """(U, n, N): soft-maxed scores of some query tokens, in the first buffer."""
        s_UnN = self._buffer(0, len(q_UND), n)
        query = q_UND[:, n]
        if terms_UNL is None:
            torch.baddbmm(s_UnN, query, k_UND.mT, beta=0, alpha=self.scale, out=s_UnN)
        else:
            h_terms, w_terms = self._by_key(terms_UNL[:, n], n)
            if self.onehot_KN is None:
                scores = s_UnN.view(*h_terms.shape, self.w)
                torch.add(h_terms[..., :, None], w_terms[..., None, :], out=scores)
            else:
                both = torch.cat([h_terms, w_terms], -1).flatten(0, 2)
                torch.mm(both, self.onehot_KN, out=s_UnN.flatten(0, 1))
            s_UnN.baddbmm_(query, k_UND.mT, alpha=self.scale)
        if self.mask_GNN is not None:
            of_image = torch.arange(groups.start, groups.stop) % len(self.mask_GNN)
            hidden = ~self.mask_GNN[of_image, n]
            s_UnN.unflatten(0, (len(hidden), -1)).masked_fill_(hidden[:, None], float("-inf"))
        return torch.softmax(s_UnN, -1, out=s_UnN)

    def gradient_of_scores(self, p_UnN: Tensor, grad_UnD: Tensor, v_UND: Tensor) -> Tensor:
        """(U, n, N), in the second buffer."""
        n = slice(0, p_UnN.shape[1])
        grad_p = torch.bmm(grad_UnD, v_UND.mT, out=self._buffer(1, len(p_UnN), n))
        return torch.ops.aten._softmax_backward_data.out(
            grad_p, p_UnN, -1, p_UnN.dtype, grad_input=grad_p
        )

    def gradient_of_terms(self, grad_UnN: Tensor, n: slice) -> Tensor:
        """(U, n, L)."""
        grad = grad_UnN.view(len(grad_UnN), -1, self.w, self.h, self.w)
        terms = grad_UnN.new_zeros(*grad_UnN.shape[:2], len(self.tables_LD))
        h_terms, w_terms = self._by_key(terms, n)
        h_terms.copy_(grad.sum(-1))
        w_terms.copy_(grad.sum(-2))
        return terms

    def _by_key(self, terms_UnL: Tensor, n: slice) -> tuple[Tensor, Tensor]:
        """Views (U, rows, w, h) and (U, rows, w, w): of each query the term of each key's row and
        of each key's column. One row or column on, the terms of a query begin one place earlier."""
        U, count, L = terms_UnL.shape
        rows = (U, count // self.w, self.w)
        strides = (terms_UnL.stride(0), self.w * L, L)
        start = terms_UnL.storage_offset()
        h_terms = terms_UnL.as_strided(
            (*rows, self.h),
            (strides[0], strides[1] - 1, L, 1),
            start + self.h - 1 - n.start // self.w,
        )
        w_terms = terms_UnL.as_strided(
            (*rows, self.w), (*strides[:2], L - 1, 1), start + 2 * self.h - 1 + self.w - 1
        )
        return h_terms, w_terms

    def _buffer(self, which: int, U: int, n: slice) -> Tensor:
        count = n.stop - n.start
        return self.buffers[which, : U * count * self.N].view(U, count, self.N)
