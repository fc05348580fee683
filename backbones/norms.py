"""Norms: of (B, C, H, W) maps, and of the blocks' tokens, whose channels come last."""

import torch
import torch.nn.functional as F
from detectron2.layers import get_norm
from torch import Tensor, nn

from .arguments import number
from .recompute import is_again
from .registries import NORMS


class LayerNorm2d(nn.Module):
    """LayerNorm over the channels of (B, C, H, W), at each position.

    The same function and keys as detectron2's channel-first `LayerNorm`, by torch's kernel: it
    keeps one tensor for the backward pass instead of five. Mean, variance and output have the
    weights' precision, float32, under autocast too: detectron2's ROIAlign rounds box coordinates to
    the precision of the map that it reads, in bfloat16 to 4 px of a 1024 px image.
    """

    def __init__(self, channels: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.eps = eps
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        x_BHWC = x_BHWC.to(torch.promote_types(x_BHWC.dtype, self.weight.dtype))
        x_BHWC = F.layer_norm(x_BHWC, self.weight.shape, self.weight, self.bias, self.eps)
        return x_BHWC.permute(0, 3, 1, 2)


@NORMS.register("layer")
def layer_norm(channels: int, eps: float = 1e-6) -> nn.LayerNorm:
    """With the epsilon of the ViT family."""
    return nn.LayerNorm(channels, eps=number("eps", eps, least=0))


@NORMS.register("batch")
class TokenBatchNorm(nn.BatchNorm2d):
    """Batch norm of each channel over all tokens of all images of a forward pass, on (B, H, W, C).

    InsightFace's ViT for faces (arcface_torch, `VITBatchNorm`) norms each token position by itself,
    over images and channels, and so has as many weights as positions: an encoder for images of any
    size cannot. Statistics are those of a micro batch on one device, as of the conv stem's.
    """

    def forward(self, x_BHWC: Tensor) -> Tensor:
        x_BCHW = x_BHWC.permute(0, 3, 1, 2)
        if self.training and is_again():
            # Copies take what was counted already. Without any, fewer tensors would be saved for
            # the backward pass than the first time, which torch refuses.
            counted = self.running_mean.clone(), self.running_var.clone()
            x_BCHW = F.batch_norm(x_BCHW, *counted, self.weight, self.bias, True, eps=self.eps)
        else:
            x_BCHW = super().forward(x_BCHW)
        return x_BCHW.permute(0, 2, 3, 1)


def norm_layer(norm: str, channels: int) -> nn.Module | None:
    """detectron2's `get_norm`, with "LN" as above; None for ""."""
    return LayerNorm2d(channels) if norm == "LN" else get_norm(norm, channels)
