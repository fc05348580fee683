"""Multi-head self-attention within the groups of a partition: one function, several kernels."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from . import kernels
from .kernels import Linear
from .kernels.linear_layers import linear
from .partition import Partition, pad_tokens
from .positions import relative_position_bias, resized_table
from .rope import Rope, Turn
from .sequence import TokenSequence

ATTENTION = ("fused", "reference", "triton")


def _groups_of(partition: Partition) -> str:
    """Their word in `kernels.WHERE`."""
    if type(partition).labels is not Partition.labels:
        return "labelled"
    return "global" if partition.is_global else "windows"


class QVBiased(nn.Linear):
    """To q, k and v, of which k has no bias (EVA-02, DINOv3): one of 2 * M * D numbers."""

    def __init__(self, dim: int):
        super().__init__(dim, 3 * dim, bias=False)
        self.bias = nn.Parameter(torch.zeros(2 * dim))

    def forward(self, x: Tensor) -> Tensor:
        q, v = self.bias.chunk(2)
        return linear(x, self.weight, torch.cat([q, torch.zeros_like(q), v]))


class Attention(nn.Module):
    """Self-attention of the tokens of a map, within groups.

    Args:
        dim: channels.
        num_heads: heads; `dim` must be a multiple.
        partition: how tokens are grouped.
        grid: (rows, columns) of the map at `img_size`, sizes the relative-position tables.
        qkv_bias: whether q, k and v have a bias; "qv": q and v.
        use_rel_pos: whether decomposed relative positions are added.
        rel_pos_zero_init: start them at zero, else from a normal of std 0.02.
        attention: "reference", the textbook form; "fused", the same function without the tensor of
            all scores (tokens x tokens) and without work on padding, on a GPU by the kernel that
            `kernels.WHERE` names; or "triton", by `kernels.triton_attention` where that runs (on a
            GPU; not in float64, or with more than 128 channels of a head), elsewhere as "fused".
        rope: turns q and k by their places, or None.
        qk_norm: builds a norm of a head's channels, for q and for k, in front of that; or None.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        partition: Partition,
        grid: tuple[int, int],
        qkv_bias: bool | str = True,
        use_rel_pos: bool = False,
        rel_pos_zero_init: bool = True,
        attention: str = "fused",
        rope: Rope | None = None,
        qk_norm: Callable[[int], nn.Module] | None = None,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.partition = partition
        self.attention = attention
        qv = isinstance(qkv_bias, str)
        self.qkv = QVBiased(dim) if qv else Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        self.rope = rope
        self.q_norm, self.k_norm = (
            None if qk_norm is None else qk_norm(dim // num_heads) for _ in range(2)
        )
        self.use_rel_pos = use_rel_pos
        if use_rel_pos:
            group = partition.group_size(*partition.padded_size(*grid))
            for axis, length in zip("hw", group, strict=True):
                table = nn.Parameter(torch.zeros(2 * length - 1, dim // num_heads))
                if not rel_pos_zero_init:
                    nn.init.trunc_normal_(table, std=0.02)
                self.register_parameter(f"rel_pos_{axis}", table)

    def forward(
        self,
        x_BHWC: Tensor,
        sequence: TokenSequence | None = None,
        turns: Sequence[Turn | None] | None = None,
    ) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C); with `sequence`, of its (B, T, 1, C).

        Args:
            turns: as of `turns`, where they are known; None: they are computed.
        """
        if turns is None:
            turns = self.turns(x_BHWC, sequence)
        if sequence is None:
            return self._attend(x_BHWC, self.partition, turns[0])
        parts = sequence.parts(self.partition)
        xs = x_BHWC.split([part.length for part in parts], 1)
        return torch.cat(
            [
                self._attend(x, part.partition, turn)
                for x, part, turn in zip(xs, parts, turns, strict=True)
            ],
            1,
        )

    def turns(
        self, x_BHWC: Tensor, sequence: TokenSequence | None = None
    ) -> tuple[Turn | None, ...]:
        """What q and k of the tokens turn by: of the map, or of each part of `sequence`. They are
        those of every attention with this `rope` and `partition`."""
        parts = [] if sequence is None else sequence.parts(self.partition)
        if self.rope is None:
            return (None,) * (len(parts) or 1)
        size = tuple(x_BHWC.shape[1:3]) if sequence is None else sequence.size
        channels = self.proj.out_features // self.num_heads
        turn = self.rope.turn(self.partition, size, channels, x_BHWC)
        return (turn,) if sequence is None else tuple(part.turned(turn) for part in parts)

    def _attend(self, x_BHWC: Tensor, partition: Partition, turn: Turn | None) -> Tensor:
        """`turn` is of the tokens of `partition`, padding included."""
        if self.attention == "reference":
            return self._reference(x_BHWC, partition, turn)
        groups, on_cpu = _groups_of(partition), x_BHWC.device.type == "cpu"
        chosen = "" if on_cpu else kernels.WHERE[self.use_rel_pos, groups].kernel
        if kernels.TRITON in (self.attention, chosen):
            channels = x_BHWC.shape[-1] // self.num_heads
            if kernels.runs_triton(x_BHWC, channels):
                return self._triton(x_BHWC, partition, turn)
            chosen = "folded" if chosen == kernels.TRITON else chosen
        if on_cpu:
            return self._chunked(x_BHWC, partition, turn)
        return self._folded(x_BHWC, partition, turn, chosen)

    def _qkv(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, 3 * M * D)."""
        qkv_BHWE = self.qkv(x_BHWC)
        if self.q_norm is None:
            return qkv_BHWE
        q, k, v = qkv_BHWE.chunk(3, -1)
        # The heads side by side, as a norm of maps takes them.
        q, k = (
            norm(x.unflatten(-1, (self.num_heads, -1)).flatten(2, 3)).reshape(x.shape).to(x.dtype)
            for norm, x in ((self.q_norm, q), (self.k_norm, k))
        )
        return torch.cat([q, k, v], -1)

    def _reference(self, x_BHWC: Tensor, partition: Partition, turn: Turn | None = None) -> Tensor:
        """softmax(q k / sqrt(D) + bias) v, as written. Padding is a zero token."""
        B, H, W, C = x_BHWC.shape
        padded = partition.padded_size(H, W)
        q_GMND, k_GMND, v_GMND = self._in_groups(x_BHWC, partition, turn)
        h, w = partition.group_size(*padded)
        scale = q_GMND.shape[-1] ** -0.5
        scores_GMNN = torch.einsum("gmqd,gmkd->gmqk", q_GMND * scale, k_GMND)
        if self.use_rel_pos:
            scores_GMNN = scores_GMNN + relative_position_bias(
                q_GMND, self.rel_pos_h, self.rel_pos_w, (h, w)
            )
        mask_GNN = partition.mask(*padded, x_BHWC.device)
        if mask_GNN is not None:
            hidden_GNN = ~mask_GNN.repeat(B, 1, 1)
            scores_GMNN = scores_GMNN.masked_fill(hidden_GNN[:, None], float("-inf"))
        x_GMND = scores_GMNN.softmax(-1) @ v_GMND
        x_GhwC = self.proj(x_GMND.transpose(1, 2).reshape(-1, h, w, C))
        return partition.join(x_GhwC, *padded)[:, :H, :W]

    def in_groups(self, x_BHWC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v of a map's groups, padding included, unscaled: each (G, M, N, D)."""
        return self._in_groups(x_BHWC, self.partition, self.turns(x_BHWC)[0])

    def _in_groups(
        self, x_BHWC: Tensor, partition: Partition, turn: Turn | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        padded = partition.padded_size(*x_BHWC.shape[1:3])
        qkv_BHWE = self._qkv(pad_tokens(x_BHWC, padded))
        if turn is not None:
            qkv_BHWE = self.rope(qkv_BHWE, turn, self.num_heads)
        return self._heads(partition.split(qkv_BHWE))

    def _chunked(self, x_BHWC: Tensor, partition: Partition, turn: Turn | None = None) -> Tensor:
        """On a CPU, see `kernels.chunked_attention`."""
        kernel, visible = kernels.chunked_attention, partition.mask
        return self._in_place(x_BHWC, partition, turn, kernel, visible)

    def _triton(self, x_BHWC: Tensor, partition: Partition, turn: Turn | None = None) -> Tensor:
        """See `kernels.triton_attention`."""
        kernel, visible = kernels.triton_attention, partition.labels
        return self._in_place(x_BHWC, partition, turn, kernel, visible)

    def _in_place(
        self,
        x_BHWC: Tensor,
        partition: Partition,
        turn: Turn | None,
        kernel: Callable[..., Tensor],
        visible: Callable[[int, int, torch.device], Tensor | None],
    ) -> Tensor:
        """By a kernel that reads groups from the map."""
        H, W = x_BHWC.shape[1:3]
        padded = partition.padded_size(H, W)
        h, w = partition.group_size(*padded)
        qkv_BHWE = self._qkv(x_BHWC)
        pad_E = self._qkv_of_padding(x_BHWC) if padded != (H, W) else None
        if turn is None:
            index_GN = partition.index(H, W, x_BHWC.device)
        else:
            # Each padding token by its own place: no longer one for all.
            qkv_BHWE, pad_E = pad_tokens(qkv_BHWE, padded, pad_E), None
            qkv_BHWE = self.rope(qkv_BHWE, turn, self.num_heads)
            index_GN = partition.order(*padded, x_BHWC.device)
        size, qkv_BTE = qkv_BHWE.shape[1:3], qkv_BHWE.flatten(1, 2)
        tables_LD = None
        if self.use_rel_pos:
            tables_LD = kernels.relative_tables(
                resized_table(self.rel_pos_h, h), resized_table(self.rel_pos_w, w)
            ).to(qkv_BTE.dtype)
        x_BTC = kernel(
            qkv_BTE,
            pad_E,
            index_GN,
            tables_LD,
            visible(*padded, x_BHWC.device),
            self.num_heads,
            h,
            w,
        )
        return self.proj(x_BTC.unflatten(1, size)[:, :H, :W])

    def _folded(
        self,
        x_BHWC: Tensor,
        partition: Partition,
        turn: Turn | None = None,
        kernel: str = "folded",
    ) -> Tensor:
        """On a GPU, see `kernels.folded_attention`; by a word of `kernels.GROUPED`."""
        B, H, W, C = x_BHWC.shape
        padded = partition.padded_size(H, W)
        qkv_BHWE = self._qkv(x_BHWC)
        if padded != (H, W):
            qkv_BHWE = pad_tokens(qkv_BHWE, padded, self._qkv_of_padding(x_BHWC))
        if turn is not None:
            qkv_BHWE = self.rope(qkv_BHWE, turn, self.num_heads)
        qkv_GhwE = partition.split(qkv_BHWE)
        h, w = qkv_GhwE.shape[1:3]
        tables = None
        if self.use_rel_pos:
            tables = (self.rel_pos_h.to(qkv_GhwE.dtype), self.rel_pos_w.to(qkv_GhwE.dtype))
        attend = kernels.GROUPED[kernel]
        visible = attend.visible(partition)(*padded, x_BHWC.device)
        if visible is not None:
            visible = visible.repeat(B, *(1,) * (visible.ndim - 1))
        x_GMND = attend(*self._heads(qkv_GhwE), tables, visible, (h, w))
        x_GhwC = x_GMND.transpose(1, 2).reshape(-1, h, w, C)
        return self.proj(partition.join(x_GhwC, *padded)[:, :H, :W])

    def _heads(self, qkv_GhwE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """-> q, k, v, each (G, M, N, D)."""
        qkv = qkv_GhwE.flatten(1, 2).unflatten(2, (3, self.num_heads, -1))
        return qkv.permute(2, 0, 3, 1, 4).unbind(0)

    def _qkv_of_padding(self, x_BHWC: Tensor) -> Tensor:
        """(E,): padding is a zero token, so its q, k and v are what `qkv` makes of zeros."""
        return self._qkv(x_BHWC.new_zeros(1, 1, 1, x_BHWC.shape[-1])).flatten()
