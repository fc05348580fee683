"""From a batch of pre-training to what its networks read."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

# ImageNet's mean and standard deviation of red, green and blue, in 0..255.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class Pixels(nn.Module):
    """Normalises pixels by the mean and standard deviation of red, green and blue, in 0..255."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return (image_BCHW - self.mean) / self.std

    def back(self, image_BCHW: Tensor) -> Tensor:
        """The inverse of `forward`."""
        return image_BCHW * self.std + self.mean

    def of(self, batch: list[dict[str, Any]]) -> Tensor:
        """The "image" of each item, uint8 (3, H, W) and all of one size: (B, 3, H, W)."""
        images = torch.stack([item["image"] for item in batch])
        return self(images.to(self.mean.device))
