"""Rotary positions: queries and keys turn by an angle for their place (RoFormer, arXiv:2104.09864).

The score of a query and a key then depends on how far apart they are. Of a head's D channels a half
turns by the row and a half by the column, in pairs, each pair at a frequency of its own. Tokens
turn before the kernel, by tables that are computed for the size at hand and never stored.
"""

import math

import torch
from torch import Tensor

from .arguments import number
from .kernels.turning import turned
from .partition import Partition
from .registries import POSITIONS, choose

Turn = tuple[Tensor, Tensor]  # cosines and sines, (1, H, W, D / 2), of a map of padded size


@POSITIONS.register("rope")
class Rope:
    """By angles base ** -(4 i / D) of the place, for pair i = 0, 1, ... of an axis.

    Args:
        length: what `unit="token"` scales a side to: the pre-training's, in tokens.
        unit: of places along a side of n tokens. "side": (2 i + 1) / n - 1, from -1 to 1, in whole
            turns (DINOv3, arXiv:2508.10104); "token": i * length / n (EVA-02, arXiv:2303.11331;
            Perception Encoder, arXiv:2504.13181; SAM 3).
        coordinates: whose side that is, "map": a token has one place in all blocks; "window": in a
            block with windows its place in the window (EVA-02's, PE's and SAM 3's detectors).
        base: None: 100 for sides, 10,000 for tokens.
        axes: whose channels come first, "yx": the row's; "xy": the column's (PE, SAM 3).
        pairs: "halves": channels D / 2 apart (DINOv3); "neighbours" (EVA-02, PE, SAM 3); None: that
            of the unit.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """

    def __init__(
        self,
        length: float,
        unit: str = "side",
        coordinates: str = "map",
        base: float | None = None,
        axes: str = "yx",
        pairs: str | None = None,
    ):
        self.unit = choose("unit", unit, ("side", "token"))
        self.coordinates = choose("coordinates", coordinates, ("map", "window"))
        self.base = (100 if unit == "side" else 10_000) if base is None else base
        number("base", self.base, least=1)
        self.axes = choose("axes", axes, ("yx", "xy"))
        pairs = pairs or ("halves" if unit == "side" else "neighbours")
        self.pairs = choose("pairs", pairs, ("halves", "neighbours"))
        self.length = number("length", length, least=1)

    @property
    def words(self) -> dict[str, float | str]:
        """The arguments that matter, for files: those that are as without them left out, but for
        unit and coordinates."""
        plain = vars(Rope(1 if self.unit == "side" else self.length + 1, self.unit))
        own = vars(self) if self.unit == "token" else vars(self) | {"length": 1}
        said = ("unit", "coordinates")
        return {k: v for k, v in own.items() if k in said or v != plain[k]}

    def turn(
        self, partition: Partition, size: tuple[int, int], channels: int, like: Tensor
    ) -> Turn:
        """Of the tokens of a map, padding included: it turns by its own place.

        Args:
            partition: of the block.
            size: (H, W), rows and columns of the map without padding.
            channels: D, of a head.
            like: gives the device; the tables are at least float32.
        """
        padded = partition.padded_size(*size)
        if self.coordinates == "map" or partition.is_global:
            return self._tables(padded, size, channels, like)
        group = partition.group_size(*padded)
        groups = padded[0] * padded[1] // (group[0] * group[1])
        tables = self._tables(group, group, channels, like)
        return tuple(partition.join(x.expand(groups, -1, -1, -1), *padded) for x in tables)

    def _tables(
        self, places: tuple[int, int], side: tuple[int, int], channels: int, like: Tensor
    ) -> Turn:
        dtype = torch.promote_types(like.dtype, torch.float32)
        steps = torch.arange(channels // 4, dtype=dtype, device=like.device)
        frequencies = self.base ** -(steps / (channels // 4))
        angles = []
        for count, n in zip(places, side, strict=True):
            i = torch.arange(count, dtype=dtype, device=like.device)
            if self.unit == "side":
                place = ((2 * i + 1) / n - 1) * (2 * math.pi)
            else:
                place = i * (self.length / n)
            angles.append(place[:, None] * frequencies)
        rows, columns = angles[0][:, None], angles[1][None]

        def table(function) -> Tensor:
            row, column = function(rows), function(columns)
            parts = [row.expand(*places, -1), column.expand(*places, -1)]
            return torch.cat(parts if self.axes == "yx" else parts[::-1], -1)[None]

        return table(torch.cos), table(torch.sin)

    def __call__(self, qkv_BHWE: Tensor, turn: Turn, num_heads: int) -> Tensor:
        """q, k and v of each token, (B, H, W, 3 * M * D), with q and k turned."""
        return turned(qkv_BHWE, *turn, num_heads, self.pairs == "halves")
