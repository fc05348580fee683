"""Kernels of attention, to be compared: `attention_errors`, `attention_times`.

Each computes what stands between the linear layers of `backbones.attention.Attention`, grouping and
padding included, from the same input. A new one is one more entry of `KERNELS`.
"""

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from backbones.kernels import (
    GROUPED,
    TRITON,
    chunked_attention,
    relative_tables,
    triton_attention,
)
from backbones.kernels.gpu_attention import Grouped
from backbones.partition import Partition, pad_tokens
from backbones.positions import relative_position_bias, relative_terms

if TYPE_CHECKING:
    from .attention_errors import Setting
    from .attention_times import Timing

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Input:
    """Of attention over a map of H x W tokens: q, k and v, unscaled, (B, H, W, 3 * M * D); those of
    a padding token, (3 * M * D,); relative positions per axis, (2 * length - 1, D), or None."""

    qkv: Tensor
    pad: Tensor
    tables: tuple[Tensor, Tensor] | None
    partition: Partition
    heads: int

    @property
    def padded(self) -> tuple[int, int]:
        return self.partition.padded_size(*self.qkv.shape[1:3])

    def leaves(self) -> dict[str, Tensor]:
        """What has a gradient."""
        found = {"qkv": self.qkv}
        if self.padded != tuple(self.qkv.shape[1:3]):
            found["pad"] = self.pad
        if self.tables:
            found |= dict(zip(("rel_pos_h", "rel_pos_w"), self.tables, strict=True))
        return found

    def to(self, dtype: torch.dtype, device: str) -> "Input":
        """A copy, whose tensors want gradients. Tables stay float32 below it, as parameters do."""

        def leaf(x: Tensor, to: torch.dtype = dtype) -> Tensor:
            return x.detach().to(device, to, copy=True).requires_grad_()

        exact = torch.promote_types(dtype, torch.float32)
        tables = tuple(leaf(table, exact) for table in self.tables) if self.tables else None
        return Input(leaf(self.qkv), leaf(self.pad), tables, self.partition, self.heads)


def random_input(
    partition: Partition,
    side: tuple[int, int],
    batch: int,
    heads: int,
    channels: int,
    rel_pos: bool,
    device: str = "cpu",
) -> Input:
    """Normal values; terms of relative positions are as large as those of the products.

    Args:
        side: rows and columns of the map.
        channels: of a head.
    """
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    h, w = partition.group_size(*partition.padded_size(*side))
    tables = tuple(normal(2 * n - 1, channels) * channels**-0.5 for n in (h, w))
    width = 3 * heads * channels
    qkv, pad = normal(batch, *side, width), normal(width)
    return Input(qkv, pad, tables if rel_pos else None, partition, heads)


# (q, k, v, tables, visible, (h, w)) as `folded_attention`.
OfGroups = Callable[..., Tensor]


def of_groups(attend: OfGroups, labels: bool, x: Input) -> Tensor:
    """A kernel on q, k and v of groups, (G, M, N, D), around which tokens are copied into groups
    and back: (B, H, W, M * D). It is given a mask or labels."""
    B, H, W, E = x.qkv.shape
    qkv_GhwE = x.partition.split(pad_tokens(x.qkv, x.padded, x.pad))
    h, w = qkv_GhwE.shape[1:3]
    qkv = qkv_GhwE.flatten(1, 2).unflatten(2, (3, x.heads, -1)).permute(2, 0, 3, 1, 4)
    tables = x.tables and tuple(table.to(qkv.dtype) for table in x.tables)
    says = x.partition.labels if labels else x.partition.mask
    visible = says(*x.padded, qkv.device)
    if visible is not None:
        visible = visible.repeat(B, *(1,) * (visible.ndim - 1))
    x_GMND = attend(*qkv.unbind(0), tables, visible, (h, w))
    x_GhwC = x_GMND.transpose(1, 2).reshape(-1, h, w, E // 3)
    return x.partition.join(x_GhwC, *x.padded)[:, :H, :W]


def _reference(q, k, v, tables, mask, size) -> Tensor:
    """The textbook form."""
    scores_GMNN = (q * q.shape[-1] ** -0.5) @ k.mT
    if tables:
        scores_GMNN = scores_GMNN + relative_position_bias(q, *tables, size)
    if mask is not None:
        scores_GMNN = scores_GMNN.masked_fill(~mask[:, None], float("-inf"))
    return scores_GMNN.softmax(-1).to(v.dtype) @ v


def _biased(q, k, v, tables, mask, size) -> Tensor:
    """torch's attention with a bias for every pair of tokens."""
    bias = relative_position_bias(q, *tables, size) if tables else None
    if mask is not None:
        hidden = ~mask[:, None]
        none = q.new_zeros(()) if bias is None else bias
        bias = none.masked_fill(hidden, float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


@functools.cache
def _compiled_flex() -> Callable[..., Tensor]:
    return torch.compile(flex_attention, dynamic=False)


def _flex(q, k, v, tables, mask, size) -> Tensor:
    """FlexAttention: the bias is computed in the kernel, from the queries' terms."""
    if tables:
        rel_h, rel_w = (terms.flatten(2, 3) for terms in relative_terms(q, *tables, size))
    w = size[1]

    def score(s, g, m, query, key):
        if tables:
            s = s + rel_h[g, m, query, key // w] + rel_w[g, m, query, key % w]
        return s if mask is None else torch.where(mask[g, query, key], s, -float("inf"))

    attend = _compiled_flex() if q.is_cuda else flex_attention
    return attend(q, k, v, score_mod=score if tables or mask is not None else None)


def _in_place(attend: Callable[..., Tensor], labels: bool, x: Input) -> Tensor:
    """A kernel that reads groups from the map."""
    B, H, W, _ = x.qkv.shape
    h, w = x.partition.group_size(*x.padded)
    says = x.partition.labels if labels else x.partition.mask
    out_BTC = attend(
        x.qkv.flatten(1, 2),
        x.pad if x.padded != (H, W) else None,
        x.partition.index(H, W, x.qkv.device),
        relative_tables(*x.tables).to(x.qkv.dtype) if x.tables else None,
        says(*x.padded, x.qkv.device),
        x.heads,
        h,
        w,
    )
    return out_BTC.view(B, H, W, -1)


@dataclass(frozen=True)
class Kernel:
    run: Callable[[Input], Tensor]
    devices: tuple[str, ...] = ("cuda", "cpu")
    compiles: bool = False  # takes seconds for each kind of input: few settings
    last: bool = False
    fits: "Callable[[Setting | Timing], bool]" = lambda case: True  # others are another kernel's


def _grouped(attend: OfGroups, labels: bool = False, **words) -> Kernel:
    return Kernel(functools.partial(of_groups, attend, labels), **words)


def _torchs(name: str, kernel: Grouped) -> Kernel:
    """Where it is not "folded" once more: narrow v for many channels, labels for masks."""
    devices = ("cuda",) if name.endswith(("cudnn", "efficient")) else ("cuda", "cpu")

    def fits(case: "Setting | Timing") -> bool:
        wide = case.rel_pos and case.D + 2 * round(case.N**0.5) > 128
        return (wide or not kernel.narrow) and (case.masked or not kernel.labels)

    return _grouped(kernel, kernel.labels, devices=devices, fits=fits)


REFERENCE = "reference"
KERNELS = {
    "folded": _torchs("folded", GROUPED["folded"]),
    # On a CPU it is interpreted: see `gpu_check.check`.
    TRITON: Kernel(functools.partial(_in_place, triton_attention, True), compiles=True),
    REFERENCE: _grouped(_reference),
    **{name: _torchs(name, kernel) for name, kernel in GROUPED.items() if name != "folded"},
    "biased": _grouped(_biased),
    "chunked": Kernel(  # what `Attention` runs on a CPU
        functools.partial(_in_place, chunked_attention, False), devices=("cpu",)
    ),
    "flex": _grouped(_flex, compiles=True, last=True),
}


def kernels(device: str) -> dict[str, Kernel]:
    """Those of a device, by their place."""
    found = [(name, kernel) for name, kernel in KERNELS.items() if device in kernel.devices]
    return dict(sorted(found, key=lambda entry: entry[1].last))


def autocast(x: Input) -> contextlib.AbstractContextManager:
    """The precision that a kernel is compared in: the input's."""
    rough = x.qkv.dtype == torch.bfloat16
    return torch.autocast(x.qkv.device.type, torch.bfloat16) if rough else _exactly()


@contextlib.contextmanager
def _exactly():
    """Float32 products without TF32, whatever the process allows."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def output_and_gradients(kernel: Kernel, x: Input) -> dict[str, Tensor]:
    """ "output", and the gradient of each leaf of `x`, of a fixed random sum of the output."""
    with autocast(x):
        out = kernel.run(x)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(out.shape, generator=generator).to(out)
    leaves = x.leaves()
    gradients = torch.autograd.grad(out, tuple(leaves.values()), weight)
    return {"output": out.detach()} | dict(zip(leaves, gradients, strict=True))
