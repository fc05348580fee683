"""A transformer block of the encoder, and its parts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import whole_number
from .attention import Attention
from .drop_path import DropPath
from .kernels import Linear, in_chunks
from .partition import Partition
from .registries import MLPS
from .rope import Rope, Turn
from .sequence import TokenSequence


@MLPS.register("mlp")
class Mlp(nn.Sequential):
    """Linear, activation, linear, on the last axis."""

    def __init__(self, dim: int, hidden: int, act_layer: Callable[[], nn.Module]):
        super().__init__()
        self.fc1 = Linear(dim, whole_number("hidden", hidden, least=1))
        self.act = act_layer()
        self.fc2 = Linear(hidden, dim)

    @property
    def linears(self) -> tuple[nn.Linear, ...]:
        return self.fc1, self.fc2

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return in_chunks(super().forward, x_BHWC, self.fc1.out_features)


@MLPS.register("swiglu")
class SwiGLU(nn.Module):
    """A gated MLP, w3(silu(w1(x)) * w2(x)) (arXiv:2002.05202), as of DINOv3 and EVA-02.

    Args:
        hidden: channels of the gate.
        norm: whether those are normed in front of the last linear map (EVA-02, arXiv:2303.11331).
    """

    def __init__(
        self, dim: int, hidden: int, norm_layer: Callable[[int], nn.Module], norm: bool = False
    ):
        super().__init__()
        self.w1 = Linear(dim, whole_number("hidden", hidden, least=1))
        self.w2 = Linear(dim, hidden)
        self.norm = norm_layer(hidden) if norm else None
        self.w3 = Linear(hidden, dim)

    @property
    def linears(self) -> tuple[nn.Linear, ...]:
        return self.w1, self.w2, self.w3

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return in_chunks(self._gated, x_BHWC, 2 * self.w1.out_features)

    def _gated(self, x_BHWC: Tensor) -> Tensor:
        hidden = F.silu(self.w1(x_BHWC)) * self.w2(x_BHWC)
        return self.w3(hidden if self.norm is None else self.norm(hidden))


class LayerScale(nn.Module):
    """A learned factor for each channel of a branch (arXiv:2103.17239)."""

    def __init__(self, dim: int, value: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), float(value)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """One transformer block: attention within groups, MLP, and a residual module behind them where
    a propagation strategy asks for one.

    Args:
        norm1, attn, norm2, mlp: its parts.
        drop_path: probability that a sample skips a branch in training.
        residual: module on (B, C, H, W), or None.
        layer_scale: value that the branches' `LayerScale`s start from; None: none.
    """

    def __init__(
        self,
        norm1: nn.Module,
        attn: Attention,
        norm2: nn.Module,
        mlp: nn.Module,
        drop_path: float = 0.0,
        residual: nn.Module | None = None,
        layer_scale: float | None = None,
    ):
        super().__init__()
        self.norm1, self.attn = norm1, attn
        self.drop_path = DropPath(drop_path)
        self.norm2, self.mlp = norm2, mlp
        dim = attn.proj.out_features
        self.ls1, self.ls2 = (
            nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale) for _ in range(2)
        )
        if residual is not None:
            self.residual = residual

    @property
    def word(self) -> str:
        """What this block does: "window", "global", "window + residual", ..."""
        return self.attn.partition.word + (" + residual" if hasattr(self, "residual") else "")

    @property
    def linears(self) -> tuple[nn.Linear, ...]:
        """Those of attention and MLP, whose initial values are the owner's of the blocks."""
        return self.attn.qkv, self.attn.proj, *getattr(self.mlp, "linears", ())

    def forward(
        self,
        x_BHWC: Tensor,
        sequence: TokenSequence | None = None,
        turns: Sequence[Turn | None] | None = None,
    ) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C); with a `sequence`, of its (B, T, 1, C). `turns`: as of
        `Attention`."""
        attended = self.ls1(self.attn(self.norm1(x_BHWC), sequence, turns))
        x_BHWC = x_BHWC + self.drop_path(attended, 0)
        x_BHWC = x_BHWC + self.drop_path(self.ls2(self.mlp(self.norm2(x_BHWC))), 1)
        if hasattr(self, "residual"):
            map_BHWC = sequence.to_map(x_BHWC) if sequence else x_BHWC
            map_BHWC = self.residual(map_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            x_BHWC = sequence.with_map(x_BHWC, map_BHWC) if sequence else map_BHWC
        return x_BHWC


@dataclass(frozen=True, kw_only=True)
class BlockParts:
    """What an encoder's blocks have in common.

    Args:
        mlp: builds the MLP from a number of channels.
        norm_layer: builds a norm, likewise.
        layer_scale: as of `Block`.
        ...: as of `Attention`.
    """

    dim: int
    num_heads: int
    grid: tuple[int, int]
    mlp: Callable[[int], nn.Module]
    norm_layer: Callable[[int], nn.Module]
    qkv_bias: bool | str = True
    use_rel_pos: bool = False
    rel_pos_zero_init: bool = True
    attention: str = "fused"
    rope: Rope | None = None
    qk_norm: bool = False
    layer_scale: float | None = None

    def block(
        self, partition: Partition, residual: nn.Module | None = None, drop_path: float = 0.0
    ) -> Block:
        """One that attends within the groups of `partition`; the rest as of `Block`."""
        attn = Attention(
            *(self.dim, self.num_heads, partition, self.grid, self.qkv_bias, self.use_rel_pos),
            *(self.rel_pos_zero_init, self.attention, self.rope),
            self.norm_layer if self.qk_norm else None,
        )
        norm1, norm2 = self.norm_layer(self.dim), self.norm_layer(self.dim)
        mlp = self.mlp(self.dim)
        return Block(norm1, attn, norm2, mlp, drop_path, residual, self.layer_scale)
