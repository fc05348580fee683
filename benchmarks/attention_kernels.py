"""Kernels of attention side by side: errors against float64, time and memory.

Each computes what stands between the linear layers of `backbones.attention.Attention`, grouping and
padding included, from the same input. A new one is one more entry of `KERNELS`.
"""

import contextlib
import functools
import gc
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from backbones import SIZES, ShiftedWindows, Windows
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

from .worker import MIB, measured

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


def _autocast(x: Input) -> contextlib.AbstractContextManager:
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
    with _autocast(x):
        out = kernel.run(x)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(out.shape, generator=generator).to(out)
    leaves = x.leaves()
    gradients = torch.autograd.grad(out, tuple(leaves.values()), weight)
    return {"output": out.detach()} | dict(zip(leaves, gradients, strict=True))


# ---- errors -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """What kernels are compared in. N tokens of a group, D channels of a head."""

    N: int
    D: int
    rel_pos: bool
    masked: bool
    dtype: str

    def __str__(self) -> str:
        words = [f"N {self.N}", f"D {self.D}", self.dtype]
        words += ["rel-pos"] * self.rel_pos + ["masked"] * self.masked
        return ", ".join(words)

    def input(self) -> Input:
        """Windows on a map that they do not fit, shifted ones where a mask is asked for; from 1024
        tokens on all of a map without one."""
        side = round(self.N**0.5)
        if self.masked:
            partition, map_ = ShiftedWindows(side), (2 * side, 2 * side)
            if self.N < 1024:
                map_ = (2 * side - 1, side + 2)
        elif self.N < 1024:
            partition, map_ = Windows(side), (side, 2 * side - 3)
        else:
            partition, map_ = Partition(), (side, side)
        return random_input(partition, map_, 1, 2, self.D, self.rel_pos)


def settings(tiny: bool) -> list[Setting]:
    return [
        Setting(N, D, rel_pos, masked, dtype)
        for dtype in ("bfloat16", "float32")
        for N in ((64, 196) if tiny else (64, 196, 256, 4096))
        for D in ((16,) if tiny else (64, 80))
        for rel_pos, masked in ((True, False), (True, True), (False, False), (False, True))
    ]


def few_settings(tiny: bool) -> list[Setting]:
    """For kernels that take seconds for each kind of input."""
    wanted = ((64, True),) if tiny else ((196, True), (4096, False))
    rough = [s for s in settings(tiny) if s.dtype == "bfloat16" and s.rel_pos]
    return [s for s in rough if (s.N, s.masked) in wanted]


@functools.lru_cache(maxsize=1)  # for all kernels of a setting, one after the other
def _exact(setting: Setting, device: str) -> tuple[Input, dict[str, Tensor]]:
    """The input in the setting's type, and what it leads to in float64."""
    rough = setting.input().to(DTYPES[setting.dtype], device)
    return rough, output_and_gradients(KERNELS[REFERENCE], rough.to(torch.float64, device))


def errors(setting: Setting, name: str, device: str) -> dict:
    """Of a kernel: |found - exact| / |exact| of the output and of its worst gradient, and whether
    all numbers are finite (NaN where not)."""
    x, exact = _exact(setting, device)
    found = output_and_gradients(KERNELS[name], x)
    wrong = {
        key: ((found[key].double() - value).norm() / value.norm()).item()
        for key, value in exact.items()
    }
    bad = [key for key, value in found.items() if not value.isfinite().all()]
    output = wrong.pop("output")
    return dict(
        kernel=name,
        **asdict(setting),
        output_error=output,
        gradient_error=max(wrong.values(), key=lambda e: e if e == e else float("inf")),
        finite=not bad,
        not_finite=", ".join(bad),
    )


# ---- time and memory --------------------------------------------------------------------------

GROUPINGS = {"global": lambda _: Partition(), "window": Windows, "shifted": ShiftedWindows}


@dataclass(frozen=True)
class Timing:
    """Attention of one block of an encoder."""

    size: str
    grouping: str
    mode: str  # "forward" or "train": forward and backward
    rel_pos: bool = True
    tokens: int = 64  # along a side of the map
    window: int = 14
    batch: int = 8
    dtype: str = "bfloat16"

    def __str__(self) -> str:
        positions = "" if self.rel_pos else ", no relative positions"
        return f"{self.size}, {self.grouping}, {self.mode}{positions}"

    @property
    def partition(self) -> Partition:
        return GROUPINGS[self.grouping](self.window)

    @property
    def N(self) -> int:  # noqa: N802
        """Tokens of a group."""
        h, w = self.partition.group_size(*self.partition.padded_size(self.tokens, self.tokens))
        return h * w

    @property
    def D(self) -> int:  # noqa: N802
        """Channels of a head."""
        return SIZES[self.size]["embed_dim"] // SIZES[self.size]["num_heads"]

    @property
    def masked(self) -> bool:
        return isinstance(self.partition, ShiftedWindows)

    def flops(self, x: Input) -> int:
        """Of the two products of the textbook form, padding included; backward 2.5 times those."""
        h, w = x.partition.group_size(*x.padded)
        tokens = self.batch * x.padded[0] * x.padded[1]
        flops = 2 * 2 * tokens * h * w * SIZES[self.size]["embed_dim"]
        return flops * 7 // 2 if self.mode == "train" else flops


def timings(tiny: bool) -> list[Timing]:
    if tiny:
        words = dict(mode="train", tokens=5, window=3, batch=1, dtype="float32")
        return [Timing("vit-ti", g, **words) for g in ("global", "shifted")]
    found = [
        Timing(size, grouping, mode)
        for size in ("vit-b", "vit-l", "vit-h")
        for mode in ("train", "forward")
        for grouping in GROUPINGS
    ]
    return found + [
        Timing("vit-b", grouping, mode, rel_pos=False)
        for mode in ("train", "forward")
        for grouping in GROUPINGS
    ]


def timed(timing: Timing, name: str, device: str) -> dict:
    """As `worker.measured`, the peak beside the input; FLOP/s, and whether gradients are finite."""
    gc.collect()
    side, heads = (timing.tokens,) * 2, SIZES[timing.size]["num_heads"]
    words = dict(rel_pos=timing.rel_pos, device=device)
    x = random_input(timing.partition, side, timing.batch, heads, timing.D, **words)
    x = x.to(DTYPES[timing.dtype], device)
    kernel, leaves = KERNELS[name], tuple(x.leaves().values())

    def forward() -> Tensor:
        with _autocast(x):
            return kernel.run(x)

    def forward_only() -> None:
        with torch.no_grad():
            forward()

    weight = torch.randn_like(forward().detach())

    def train() -> tuple[Tensor, ...]:
        return torch.autograd.grad(forward(), leaves, weight)

    run = train if timing.mode == "train" else forward_only
    finite = all(g.isfinite().all().item() for g in train()) if timing.mode == "train" else None
    before = torch.cuda.memory_allocated() / MIB if device == "cuda" else None
    row = measured(run, device)
    if before is not None:
        row["peak_mib"] -= before
    return dict(
        kernel=name,
        **asdict(timing),
        finite=finite,
        tflops=timing.flops(x) / row["seconds"] / 1e12,
        **row,
    )
