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
UNSEEN = LABELS  # label of places that only fill a group up


class Partition:
    """All tokens in one group, i.e. global attention; subclass for another grouping.

    A subclass overrides `split`, and `padded_size` where the map must have another size for it;
    where some tokens of a group must not see each other also `labels`. The rest follows; what is
    known in closed form, `join` or `group_size`, may be said for speed.
    """

    word = "global"
    is_global = True  # every token sees all

    def __init_subclass__(cls, **words):
        super().__init_subclass__(**words)
        own = vars(cls)
        if "mask" in own:
            raise TypeError(f"{cls.__name__} overrides mask, which follows from labels: say those")
        if "split" in own and "join" not in own:
            cls.join = Partition.join  # a parent's undoes another `split`
        if "split" in own or "labels" in own:
            cls.is_global = own.get("is_global", False)

    def padded_size(self, H: int, W: int) -> tuple[int, int]:
        """Rows and columns that `split` needs for a map of H x W tokens."""
        return H, W

    def group_size(self, H: int, W: int) -> tuple[int, int]:
        """Rows and columns (h, w) of a group for a map of padded size H x W."""
        return (H, W) if self.is_global else tuple(self.split(_numbers(H, W)).shape[1:3])

    def split(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) of padded size -> (G, h, w, C)."""
        return x_BHWC

    def join(self, x_GhwC: Tensor, H: int, W: int) -> Tensor:
        """(G, h, w, C) -> (B, H, W, C), with H, W the padded size: undoes `split`."""
        if self.is_global:
            return x_GhwC
        back = self.split(_numbers(H, W)).flatten().argsort().to(x_GhwC.device)
        images = x_GhwC.shape[:3].numel() // (H * W)
        x_BTC = x_GhwC.reshape(images, H * W, x_GhwC.shape[-1]).index_select(1, back)
        return x_BTC.unflatten(1, (H, W))

    def labels(self, H: int, W: int, device: torch.device) -> Tensor | None:
        """Tokens of a group see those with their own label: int64 (groups of one image, N), numbers
        below `LABELS`, or `UNSEEN`, for a map of padded size. None: all see all."""
        return None

    def mask(self, H: int, W: int, device: torch.device) -> Tensor | None:
        """`labels` as which token may see which: bool (groups of one image, N, N)."""
        label_GN = self.labels(H, W, device)
        return None if label_GN is None else label_GN[:, :, None] == label_GN[:, None, :]

    def index(self, H: int, W: int, device: torch.device) -> Tensor | None:
        """What `split` does to a map of H x W tokens: int64 (groups of one image, N), the number
        of the token at each place, -1 for padding. None: all tokens in order."""
        padded = self.padded_size(H, W)
        if self.is_global and padded == (H, W):
            return None
        return self.split(pad_tokens(_numbers(H, W, device) + 1, padded)).flatten(1) - 1

    def order(self, H: int, W: int, device: torch.device) -> Tensor | None:
        """As `index`, of a map of padded size: no place is padding."""
        return None if self.is_global else self.split(_numbers(H, W, device)).flatten(1)


class Windows(Partition):
    """Non-overlapping square windows; padding tokens fill the last ones.

    Padding takes part in attention, unmasked, as in detectron2, transformers and
    segment-anything: released weights were trained that way.

    Args:
        size: rows and columns of a window, in tokens.
    """

    word = "window"

    def __init__(self, size: int):
        self.size = whole_number("size", size, least=1)

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


def _numbers(H: int, W: int, device: torch.device | str = "cpu") -> Tensor:
    """(1, H, W, 1): of the tokens, in order."""
    return torch.arange(H * W, device=device).view(1, H, W, 1)


def pad_tokens(x_BHWC: Tensor, size: tuple[int, int], value_C: Tensor | None = None) -> Tensor:
    """Tokens of zeros or of `value_C`, below and to the right until the map is `size`."""
    B, H, W, _ = x_BHWC.shape
    if size == (H, W):
        return x_BHWC
    if value_C is None:
        return F.pad(x_BHWC, (0, 0, 0, size[1] - W, 0, size[0] - H))
    x_BHWC = torch.cat([x_BHWC, value_C.expand(B, H, size[1] - W, -1)], 2)
    return torch.cat([x_BHWC, value_C.expand(B, size[0] - H, size[1], -1)], 1)
