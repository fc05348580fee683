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
    In bfloat16 gradients are products: a convolution's of its weights took a fifth longer.
    """
    if x_BHWC.device.type != "cpu" or x_BHWC.ndim != 4 or not _ONEDNN:
        return F.linear(x_BHWC, weight, bias)
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        dtype = x_BHWC.dtype
        if torch.is_autocast_enabled("cpu") and dtype == torch.float32:
            dtype = torch.get_autocast_dtype("cpu")
        if dtype == torch.bfloat16:
            inputs = (x if x is None else x.to(dtype) for x in (x_BHWC, weight, bias))
            return _InBfloat16.apply(*inputs)
    return _convolved(x_BHWC, weight, bias)


def _convolved(x_BHWC: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    x_BCHW = x_BHWC.permute(0, 3, 1, 2)
    return F.conv2d(x_BCHW, weight[:, :, None, None], bias).permute(0, 2, 3, 1)


class _InBfloat16(torch.autograd.Function):
    """`_convolved`, with the gradients of a matrix product."""

    @staticmethod
    def forward(x_BHWC, weight, bias):
        return _convolved(x_BHWC, weight, bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx, grad_BHWC):
        x_BHWC, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        grad_NC = grad_BHWC.flatten(0, 2)
        return (
            (grad_NC @ weight).view_as(x_BHWC) if of_x else None,
            grad_NC.T @ x_BHWC.flatten(0, 2) if of_weight else None,
            grad_NC.sum(0) if of_bias else None,
        )


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
