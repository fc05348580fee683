"""Rotary positions: pairs of channels turned by an angle."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Of a map that is turned at a time: it should stay in the cache.
_CHUNK_BYTES = 2**20


def turned(
    qkv_BHWE: Tensor, cos_1HWX: Tensor, sin_1HWX: Tensor, num_heads: int, halves: bool
) -> Tensor:
    """q and k of each head turned, v as it is: (B, H, W, 3 * M * D), in the precision of `qkv`.

    On a CPU a few rows at a time; elsewhere by torch's operators.

    Args:
        qkv_BHWE: (B, H, W, 3 * M * D).
        cos_1HWX, sin_1HWX: of each pair's angle, X = D / 2.
        num_heads: M.
        halves: whether the channels of a pair lie D / 2 apart; else side by side.
    """
    if qkv_BHWE.device.type == "cpu":
        return _Turned.apply(qkv_BHWE, cos_1HWX, sin_1HWX, num_heads, halves)
    return _by_operators(qkv_BHWE, cos_1HWX, sin_1HWX, num_heads, halves)


def _by_operators(
    qkv_BHWE: Tensor, cos_1HWX: Tensor, sin_1HWX: Tensor, num_heads: int, halves: bool
) -> Tensor:
    qk, v = qkv_BHWE.tensor_split((qkv_BHWE.shape[-1] // 3 * 2,), -1)
    a, b = _pairs(qk, num_heads, halves)
    cos, sin = cos_1HWX[..., None, :], sin_1HWX[..., None, :]
    both = (a * cos - b * sin, b * cos + a * sin)
    qk = torch.cat(both, -1) if halves else torch.stack(both, -1).flatten(-2)
    return torch.cat([qk.flatten(-2).to(v.dtype), v], -1)


def _pairs(qk: Tensor, num_heads: int, halves: bool) -> tuple[Tensor, ...]:
    """Views (..., 2 * M, D / 2) of (..., 2 * M * D)."""
    x = qk.unflatten(-1, (2 * num_heads, -1))
    return x.chunk(2, -1) if halves else x.unflatten(-1, (-1, 2)).unbind(-1)


class _Turned(torch.autograd.Function):
    """Its gradient is turned back."""

    @staticmethod
    def forward(qkv_BHWE, cos_1HWX, sin_1HWX, num_heads, halves):
        return _turn(qkv_BHWE, cos_1HWX, sin_1HWX, num_heads, halves)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[1:3])
        ctx.words = inputs[3:]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BHWE):
        cos, sin = ctx.saved_tensors
        return _turn(grad_BHWE, cos, -sin, *ctx.words), None, None, None, None


# An operator, so that torch.compile and torch.export take it for one node.
@torch.library.custom_op("backbones::turn", mutates_args=(), device_types="cpu")
def _turn(
    qkv_BHWE: Tensor, cos_1HWX: Tensor, sin_1HWX: Tensor, num_heads: int, halves: bool
) -> Tensor:
    B, H, W, E = qkv_BHWE.shape
    channels, exact = E // 3 * 2, cos_1HWX.dtype
    qkv_BHWE = qkv_BHWE.contiguous()  # gradients come in any layout
    out_BHWE = torch.empty_like(qkv_BHWE)
    cos_HW1X, sin_HW1X = cos_1HWX[0, :, :, None], sin_1HWX[0, :, :, None]
    turn_HW1X = None if halves else torch.complex(cos_HW1X, sin_HW1X)
    step = max(1, _CHUNK_BYTES // max(1, W * E * exact.itemsize))
    for image in range(B):
        for top in range(0, H, step):
            rows = slice(top, top + step)
            x, out = qkv_BHWE[image, rows], out_BHWE[image, rows]
            out[..., channels:] = x[..., channels:]
            x, to = x[..., :channels].to(exact), out[..., :channels]
            y = to if to.dtype == exact else torch.empty_like(x)
            if halves:
                (a, b), (ya, yb) = _pairs(x, num_heads, True), _pairs(y, num_heads, True)
                cos, sin = cos_HW1X[rows], sin_HW1X[rows]
                torch.mul(a, cos, out=ya).addcmul_(b, sin, value=-1)
                torch.mul(b, cos, out=yb).addcmul_(a, sin)
            else:
                pairs, of_y = (
                    torch.view_as_complex(z.unflatten(-1, (2 * num_heads, -1, 2))) for z in (x, y)
                )
                torch.mul(pairs, turn_HW1X[rows], out=of_y)
            if y is not to:
                to.copy_(y)
    return out_BHWE


@_turn.register_fake
def _(qkv_BHWE, *_):
    return qkv_BHWE.new_empty(qkv_BHWE.shape)
