"""From image to tokens."""

import itertools
import math

import torch.nn.functional as F
from torch import Tensor, nn

from .initial import init_linear
from .registries import STEMS


class _Stem(nn.Module):
    def __init__(self, patch_size: int):
        super().__init__()
        self.patch_size = patch_size

    def pad(self, image_BCHW: Tensor) -> Tensor:
        """Zeros below and to the right, up to whole patches: no pixel is dropped."""
        H, W = image_BCHW.shape[-2:]
        if H % self.patch_size == 0 and W % self.patch_size == 0:
            return image_BCHW
        return F.pad(image_BCHW, (0, -W % self.patch_size, 0, -H % self.patch_size))


@STEMS.register("patchify")
class PatchEmbed(_Stem):
    """Each patch x patch square becomes a token by one linear map (ViT, arXiv:2010.11929)."""

    def __init__(self, patch_size: int = 16, in_chans: int = 3, embed_dim: int = 768):
        super().__init__(patch_size)
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, ceil(H / patch), ceil(W / patch), embed_dim)."""
        return self.proj(self.pad(image_BCHW)).permute(0, 2, 3, 1)


@STEMS.register("conv")
class ConvStem(_Stem):
    """Early convolutions (arXiv:2106.14881): stride-2 3x3 convs, each with batch norm and ReLU,
    then a 1x1 conv. Channels double from conv to conv and reach `embed_dim` in the last one.

    Raises:
        ValueError: `patch_size` is no power of two, or `embed_dim` too small to halve that often.
    """

    def __init__(self, patch_size: int = 16, in_chans: int = 3, embed_dim: int = 768):
        super().__init__(patch_size)
        steps = int(math.log2(patch_size))
        if 2**steps != patch_size:
            raise ValueError(
                f"patch_size={patch_size} does not fit stem='conv': a power of two does"
            )
        if embed_dim < 2 ** (steps - 1):
            raise ValueError(
                f"embed_dim={embed_dim} does not fit stem='conv': at least {2 ** (steps - 1)} does"
            )
        widths = [in_chans, *(embed_dim // 2 ** (steps - 1 - i) for i in range(steps))]
        layers: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise(widths):
            layers += [
                nn.Conv2d(width_in, width_out, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(width_out),
                nn.ReLU(inplace=True),
            ]
        self.proj = nn.Sequential(*layers, nn.Conv2d(embed_dim, embed_dim, 1))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, ceil(H / patch), ceil(W / patch), embed_dim)."""
        return self.proj(self.pad(image_BCHW)).permute(0, 2, 3, 1)


@STEMS.register("patchify_norm")
class NormedPatchEmbed(_Stem):
    """As "patchify", with a norm of the patch's pixels before and one of the token after the linear
    map: vit-pytorch's SimpleViT."""

    def __init__(self, patch_size: int = 16, in_chans: int = 3, embed_dim: int = 768):
        super().__init__(patch_size)
        pixels = in_chans * patch_size**2
        self.norm_pixels = nn.LayerNorm(pixels)
        self.proj = nn.Linear(pixels, embed_dim)
        init_linear(self.proj)
        self.norm_token = nn.LayerNorm(embed_dim)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, ceil(H / patch), ceil(W / patch), embed_dim)."""
        patch = self.patch_size
        patches_BCHWpp = self.pad(image_BCHW).unfold(2, patch, patch).unfold(3, patch, patch)
        pixels_BHWP = patches_BCHWpp.permute(0, 2, 3, 1, 4, 5).flatten(3)
        return self.norm_token(self.proj(self.norm_pixels(pixels_BHWP)))
