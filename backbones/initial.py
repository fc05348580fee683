"""Initial values of the encoder's own linear layers.

Whoever makes a layer initialises it: no `apply` over the whole encoder, which would also reach into
a user's stem, residual module, norm or activation and overwrite what they begin with.
"""

from torch import nn


def init_linear(linear: nn.Linear) -> None:
    """A normal of std 0.02, cut off at 2, and no bias (detectron2's `ViT`)."""
    nn.init.trunc_normal_(linear.weight, std=0.02)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
