"""Linear layers."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Inside of an MLP that is computed at a time: it should stay in the last-level cache.
_HIDDEN_BYTES = 12 * 2**20
_ONEDNN = torch.backends.mkldnn.is_available()


def linear(x_BHWC: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`; a map on a CPU goes through oneDNN as a 1x1 convolution.

    A channels-last 1x1 convolution is the same product on the same memory. torch hands float32
    products to MKL and convolutions to oneDNN, whose threads do more on the AMD cores measured.
    """
    if x_BHWC.device.type != "cpu" or x_BHWC.ndim != 4 or not _ONEDNN:
        return F.linear(x_BHWC, weight, bias)
    x_BCHW = x_BHWC.permute(0, 3, 1, 2)
    return F.conv2d(x_BCHW, weight[:, :, None, None], bias).permute(0, 2, 3, 1)


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def in_chunks(function: Callable[[Tensor], Tensor], x_BHWC: Tensor, hidden: int) -> Tensor:
    """`function`, which must treat each token alone and is `hidden` channels wide inside.

    On a CPU and without gradients, where nothing is kept, it gets a few rows of the map at a time,
    so that its inside stays in the cache.
    """
    if x_BHWC.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function(x_BHWC)
    size = 2 if torch.is_autocast_enabled("cpu") else x_BHWC.element_size()
    row_bytes = x_BHWC.shape[0] * x_BHWC.shape[2] * hidden * size
    rows = max(1, _HIDDEN_BYTES // max(1, row_bytes))
    return torch.cat([function(part) for part in x_BHWC.split(rows, 1)], 1)
