"""The MLPs' activations by name, and those that torch does not have."""

import torch
from torch import Tensor, nn

from .registries import ACTIVATIONS


@ACTIVATIONS.register("gelu")
def gelu() -> nn.GELU:
    """As written, without the tanh approximation."""
    return nn.GELU()


@ACTIVATIONS.register("gelu_tanh")
class TanhGELU(nn.GELU):
    """GELU's approximation by a tanh, up to 5e-4 from it, which JAX computes by default: SigLIP's
    (arXiv:2303.15343)."""

    def __init__(self):
        super().__init__("tanh")


@ACTIVATIONS.register("relu6")
def relu6() -> nn.ReLU6:
    """min(max(x, 0), 6), of InsightFace's ViT for faces."""
    return nn.ReLU6()


@ACTIVATIONS.register("quick_gelu")
class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the GELU of OpenAI's CLIP (arXiv:2103.00020)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)
