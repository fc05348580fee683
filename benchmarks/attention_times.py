"""Time and memory of attention's kernels side by side."""

import gc
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from backbones import SIZES, ShiftedWindows, Windows
from backbones.partition import Partition

from .attention_kernels import DTYPES, KERNELS, Input, autocast, random_input
from .worker import MIB, measured

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
        with autocast(x):
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
