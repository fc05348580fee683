"""How the tokens of one attention block are grouped: attention never leaves a group.

Shape letters used in this package:
    B images, H W token rows and columns, C channels, G groups (all images together),
    h w rows and columns of one group, N = h * w tokens of a group, M heads, D channels of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import whole_number

LABELS = 4  # sides of a map that may share a group


class Partition:
    """All tokens in one group, i.e. global attention; subclass for another grouping.

    A subclass overrides `padded_size`, `split` and `join` (each other's inverse) and `group_size`;
    where some tokens of a group must not see each other also `labels`, or else `mask`.
    """

    word = "global"

    def padded_size(self, H: int, W: int) -> tuple[int, int]:
        """Rows and columns that `split` needs for a map of H x W tokens."""
        return H, W

    def group_size(self, H: int, W: int) -> tuple[int, int]:
        """Rows and columns (h, w) of a group for a map of H x W tokens."""
        return H, W

    def split(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) of padded size -> (G, h, w, C)."""
        return x_BHWC

    def join(self, x_GhwC: Tensor, H: int, W: int) -> Tensor:
        """(G, h, w, C) -> (B, H, W, C), with H, W the padded size."""
        return x_GhwC

    def labels(self, H: int, W: int, device: torch.device) -> Tensor | None:
        """Tokens of a group see those with their own label: int64 (groups of one image, N), numbers
        below `LABELS`, for a map of padded size. None: all see all."""
        return None

    def mask(self, H: int, W: int, device: torch.device) -> Tensor | None:
        """Which token may see which: bool (groups of one image, N, N), or None for all."""
        label_GN = self.labels(H, W, device)
        return None if label_GN is None else label_GN[:, :, None] == label_GN[:, None, :]

    def index(self, H: int, W: int, device: torch.device) -> Tensor | None:
        """What `split` does to a map of H x W tokens: int64 (groups of one image, N), the number
        of the token at each place, -1 for padding. None: all tokens in order."""
        padded = self.padded_size(H, W)
        if type(self).split is Partition.split and padded == (H, W):
            return None
        tokens_1HW1 = torch.arange(H * W, device=device).view(1, H, W, 1)
        return self.split(pad_tokens(tokens_1HW1 + 1, padded)).flatten(1) - 1


class Windows(Partition):
    """Non-overlapping square windows; padding tokens fill the last ones.

    Padding takes part in attention, unmasked, as in detectron2, transformers and
    segment-anything: released weights were trained that way.

    Args:
        size: rows and columns of a window, in tokens.
    """

    word = "window"

    def __init__(self, size: int):
        self.size = whole_number("window_size", size, least=1)

    def padded_size(self, H: int, W: int) -> tuple[int, int]:
        return -(-H // self.size) * self.size, -(-W // self.size) * self.size

    def group_size(self, H: int, W: int) -> tuple[int, int]:
        return self.size, self.size

    def split(self, x_BHWC: Tensor) -> Tensor:
        B, H, W, C = x_BHWC.shape
        s = self.size
        x = x_BHWC.reshape(B, H // s, s, W // s, s, C)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, s, s, C)

    def join(self, x_GhwC: Tensor, H: int, W: int) -> Tensor:
        s = self.size
        x = x_GhwC.reshape(-1, H // s, W // s, s, s, x_GhwC.shape[-1])
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, H, W, x_GhwC.shape[-1])


class ShiftedWindows(Windows):
    """Windows moved by half a window, wrapping around the map (Swin, arXiv:2103.14030, 3.2).

    Tokens that wrap around share a window with tokens from the other side of the map, so
    labels keep the two sides apart. An axis of a single window is not shifted.
    """

    word = "shifted window"

    def __init__(self, size: int):
        super().__init__(size)
        if size < 2:
            raise ValueError(f"window_size={size} is too small for shifted windows: 2 is the least")

    def shifts(self, H: int, W: int) -> tuple[int, int]:
        """Rows and columns to move by, for a padded map of H x W tokens."""
        half = self.size // 2
        return (half if self.size < H else 0), (half if self.size < W else 0)

    def split(self, x_BHWC: Tensor) -> Tensor:
        down, right = self.shifts(*x_BHWC.shape[1:3])
        return super().split(torch.roll(x_BHWC, (-down, -right), dims=(1, 2)))

    def join(self, x_GhwC: Tensor, H: int, W: int) -> Tensor:
        return torch.roll(super().join(x_GhwC, H, W), self.shifts(H, W), dims=(1, 2))

    def labels(self, H: int, W: int, device: torch.device) -> Tensor | None:
        down, right = self.shifts(H, W)
        if not down and not right:
            return None
        # After the roll the last `down` rows come from the top of the map, likewise columns.
        wrapped_H1 = (torch.arange(H, device=device) >= H - down)[:, None]
        wrapped_1W = (torch.arange(W, device=device) >= W - right)[None, :]
        side_HW = wrapped_H1 * 2 + wrapped_1W * 1
        return Windows.split(self, side_HW[None, :, :, None]).reshape(-1, self.size**2)


def pad_tokens(x_BHWC: Tensor, size: tuple[int, int], value_C: Tensor | None = None) -> Tensor:
    """Tokens of zeros or of `value_C`, below and to the right until the map is `size`."""
    B, H, W, _ = x_BHWC.shape
    if size == (H, W):
        return x_BHWC
    if value_C is None:
        return F.pad(x_BHWC, (0, 0, 0, size[1] - W, 0, size[0] - H))
    x_BHWC = torch.cat([x_BHWC, value_C.expand(B, H, size[1] - W, -1)], 2)
    return torch.cat([x_BHWC, value_C.expand(B, size[0] - H, size[1], -1)], 1)
