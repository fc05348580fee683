"""Stochastic depth (arXiv:1603.09382) whose draws may be made before the pass."""

import torch
from torch import Tensor
from torchvision.ops import StochasticDepth, stochastic_depth

BRANCHES = 2  # of a block: attention, MLP


class DropPath(StochasticDepth):
    """Samples skip a branch in training, as torchvision's by "row".

    Where `drawn` is set, (BRANCHES, B), it says by which factor each sample's branch is multiplied,
    and nothing is drawn.
    """

    drawn: Tensor | None = None

    def __init__(self, p: float):
        super().__init__(p, mode="row")

    def draw(self, samples: int, device: torch.device) -> Tensor:
        """What so many samples draw in one pass, (BRANCHES, samples)."""
        kept = torch.ones(samples, device=device)
        return torch.stack([stochastic_depth(kept, self.p, "row") for _ in range(BRANCHES)])

    def forward(self, x: Tensor, branch: int) -> Tensor:
        """(B, ...) -> (B, ...), of the branch of that number."""
        if self.drawn is None or not self.training:
            return super().forward(x)
        return x * self.drawn[branch].to(x.dtype).view(-1, *[1] * (x.ndim - 1))
