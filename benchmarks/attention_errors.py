"""Errors of attention's kernels against float64."""

import functools
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from backbones import ShiftedWindows, Windows
from backbones.partition import Partition

from .attention_kernels import DTYPES, KERNELS, REFERENCE, Input, output_and_gradients, random_input


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
