"""Residual conv blocks that carry information between windows (arXiv:2203.16527, section 3)."""

from collections.abc import Sequence

import fvcore.nn.weight_init as weight_init
from detectron2.layers import Conv2d
from torch import Tensor, nn

from .norms import LayerNorm2d
from .registries import CONV_BLOCKS


class ResidualConvBlock(nn.Module):
    """``x + convs(x)`` on (B, C, H, W), the identity when freshly built.

    Each conv is followed by a LayerNorm over channels, all but the last also by an activation. The
    last norm's weight starts at zero, hence the identity. Parameter names are those of
    detectron2's `ResBottleneckBlock` (conv1, norm1, conv2, ...).

    Args:
        dim: channels in and out.
        kernels: one conv per entry, with that kernel size.
        hidden_ratio: channels between the convs, as a share of `dim`.
    """

    def __init__(self, dim: int, kernels: Sequence[int], hidden_ratio: float = 1.0):
        super().__init__()
        widths = [dim, *[int(dim * hidden_ratio)] * (len(kernels) - 1), dim]
        for i, kernel in enumerate(kernels, start=1):
            conv = Conv2d(widths[i - 1], widths[i], kernel, padding=kernel // 2, bias=False)
            weight_init.c2_msra_fill(conv)
            self.add_module(f"conv{i}", conv)
            self.add_module(f"norm{i}", LayerNorm2d(widths[i]))
            if i < len(kernels):
                self.add_module(f"act{i}", nn.GELU())
        nn.init.zeros_(self.get_submodule(f"norm{len(kernels)}").weight)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for layer in self.children():
            out = layer(out)
        return x + out


# The three of Table 2b / 8b.
@CONV_BLOCKS.register("naive")
def naive(dim: int) -> ResidualConvBlock:
    """One 3x3 conv."""
    return ResidualConvBlock(dim, kernels=(3,))


@CONV_BLOCKS.register("basic")
def basic(dim: int) -> ResidualConvBlock:
    """Two 3x3 convs."""
    return ResidualConvBlock(dim, kernels=(3, 3))


@CONV_BLOCKS.register("bottleneck")
def bottleneck(dim: int) -> ResidualConvBlock:
    """1x1, 3x3, 1x1; half the channels between (detectron2's choice, not stated in the paper)."""
    return ResidualConvBlock(dim, kernels=(1, 3, 1), hidden_ratio=0.5)
