"""A map as a sequence of its tokens: some of them left out, registers in front.

Shape letters beyond those of partition.py: T tokens of the sequence, R registers, K kept tokens of
the map, T = R + K.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .partition import UNSEEN, Partition, Windows, pad_tokens


class Gathered(Partition):
    """Groups of a sequence (B, T, 1, C), read by the numbers of their tokens.

    Args:
        index_GN: number of the token at each place, each token once; -1 for padding.
        device: where it is put.
    """

    def __init__(self, index_GN: Tensor, device: torch.device):
        order = index_GN.flatten().clone()
        padding = order < 0
        tokens = len(order) - int(padding.sum())
        order[padding] = torch.arange(tokens, len(order), device=order.device)
        self._places, self._length = len(order), index_GN.shape[1]
        self._order, self._back = order.to(device), order.argsort().to(device)
        self._index_GN = index_GN.to(device)

    def padded_size(self, H: int, W: int) -> tuple[int, int]:
        return self._places, 1

    def group_size(self, H: int, W: int) -> tuple[int, int]:
        return self._length, 1

    def split(self, x_BHWC: Tensor) -> Tensor:
        return x_BHWC.index_select(1, self._order).reshape(-1, self._length, 1, x_BHWC.shape[-1])

    def join(self, x_GhwC: Tensor, H: int, W: int) -> Tensor:
        return x_GhwC.reshape(-1, H, 1, x_GhwC.shape[-1]).index_select(1, self._back)

    def index(self, H: int, W: int, device: torch.device) -> Tensor:
        return self._index_GN


class Labelled(Gathered):
    """With labels, as of `Partition.labels`."""

    def __init__(self, index_GN: Tensor, label_GN: Tensor, device: torch.device):
        super().__init__(index_GN, device)
        self._label_GN = label_GN.to(device)

    def labels(self, H: int, W: int, device: torch.device) -> Tensor:
        return self._label_GN


@dataclass(frozen=True)
class Part:
    """A run of tokens that see none of the others.

    Args:
        length: how many.
        partition: how they are grouped.
        places: of each token, padding included, its place on the map of padded size; -1: none.
    """

    length: int
    partition: Partition
    places: Tensor

    def turned(self, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """What the tokens turn by, (1, T, 1, D / 2) each: a place's of the map, or not at all."""
        found = []
        for table_1HWD, none in zip(turn, (1.0, 0.0), strict=True):
            table_PD = table_1HWD.flatten(0, 2)
            table_PD = torch.cat([table_PD, torch.full_like(table_PD[:1], none)])
            found.append(table_PD[self.places][None, :, None])
        return tuple(found)


class TokenSequence:
    """The tokens of a map that take part, and which of them see which.

    Registers see all tokens, and are seen by all, where attention is global. Elsewhere they see
    each other only: read by every window, they would carry information from one to another, and be
    a cross-window propagation of their own.

    Args:
        size: rows and columns of the map.
        partitions: of the encoder's blocks.
        registers: how many.
        kept_HW: places of the map that take part, see `draw_kept`, on the CPU; None: all.
        device: of the map.
    """

    # Numbers of tokens are worked out on the CPU: their lengths are sizes of tensors.
    @torch.compiler.disable
    def __init__(
        self,
        size: tuple[int, int],
        partitions: Iterable[Partition],
        registers: int,
        kept_HW: Tensor | None,
        device: torch.device,
    ):
        self.size, self.registers = size, registers
        self._kept_K, tokens = None, size[0] * size[1]
        if kept_HW is not None:
            kept_K = kept_HW[: size[0], : size[1]].flatten().nonzero().flatten()
            self._kept_K, tokens = kept_K.to(device), len(kept_K)
        self._parts: dict[Partition, list[Part]] = {}
        nowhere = torch.full((registers,), -1, device=device)
        for partition in partitions:
            if partition in self._parts:
                continue
            if partition.is_global:
                places = torch.arange(tokens, device=device)
                places = places if self._kept_K is None else self._kept_K
                parts = [Part(registers + tokens, partition, torch.cat([nowhere, places]))]
            else:
                index_GN, label_GN, place_GN = _groups(partition, size, kept_HW)
                gathered = (
                    Gathered(index_GN, device)
                    if label_GN is None
                    else Labelled(index_GN, label_GN, device)
                )
                place_GN = place_GN.to(device)[:, :, None, None]
                places = gathered.join(place_GN, place_GN.numel(), 1).flatten()
                parts = [Part(registers, Partition(), nowhere), Part(tokens, gathered, places)]
            self._parts[partition] = parts

    def parts(self, partition: Partition) -> list[Part]:
        """What `partition` is on the sequence."""
        return [part for part in self._parts[partition] if part.length]

    def from_map(self, x_BHWC: Tensor, registers_1RC: Tensor | None) -> Tensor:
        """(B, H, W, C) -> (B, T, 1, C)."""
        x_BTC = x_BHWC.flatten(1, 2)
        if self._kept_K is not None:
            x_BTC = x_BTC.index_select(1, self._kept_K)
        if registers_1RC is not None:
            x_BTC = torch.cat([registers_1RC.expand(len(x_BTC), -1, -1), x_BTC], 1)
        return x_BTC[:, :, None]

    def to_map(self, x_BT1C: Tensor, left_out_C: Tensor | None = None) -> Tensor:
        """(B, T, 1, C) -> (B, H, W, C), with `left_out_C`, or zeros, where no token took part."""
        x_BKC = x_BT1C[:, self.registers :, 0]
        if self._kept_K is None:
            return x_BKC.unflatten(1, self.size)
        B, _, C = x_BKC.shape
        if left_out_C is None:
            left_out_C = x_BKC.new_zeros(C)
        map_BTC = left_out_C.to(x_BKC.dtype).expand(B, self.size[0] * self.size[1], C)
        return map_BTC.index_copy(1, self._kept_K, x_BKC).unflatten(1, self.size)

    def with_map(self, x_BT1C: Tensor, x_BHWC: Tensor) -> Tensor:
        """The sequence with the tokens of another map; its registers stay."""
        registers = x_BT1C[:, : self.registers, 0] if self.registers else None
        return self.from_map(x_BHWC, registers)


def draw_kept(size: tuple[int, int], window_size: int, mask_ratio: float) -> Tensor:
    """Which places of a map take part: bool, of the map padded to whole windows, on the CPU.

    Drawn at random from torch's global generator, as many in every window, padding among them: so
    groups have one length, and an encoder's share of padding is that of evaluation. How many real
    tokens a window keeps is the same each time too.

    Args:
        size: rows and columns of the map.
        mask_ratio: share of a window's places that is left out, rounded to whole ones.
    """
    windows = Windows(window_size)
    padded = windows.padded_size(*size)
    real_GN = windows.index(*size, torch.device("cpu")) >= 0
    places = real_GN.shape[1]
    count = places - round(mask_ratio * places)
    real_G1 = real_GN.sum(1, keepdim=True)
    kept_G1 = (real_G1 * count / places).round().long().clamp(min=1)  # of the real ones
    # In random order, the real ones first.
    noise_GN = torch.rand(real_GN.shape, device="cpu") + ~real_GN
    rank_GN = noise_GN.argsort(1).argsort(1)
    chosen_GN = (rank_GN < kept_G1) | ((rank_GN >= real_G1) & (rank_GN < real_G1 + count - kept_G1))
    return windows.join(chosen_GN.view(-1, window_size, window_size, 1), *padded)[0, :, :, 0]


def _groups(
    partition: Partition, size: tuple[int, int], kept_HW: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Groups of a partition among the kept tokens, by their numbers in the order of the map, -1 for
    padding; their labels; and their places on the map of padded size. Groups that keep fewer are
    filled up with what none sees."""
    cpu = torch.device("cpu")
    padded = partition.padded_size(*size)
    if kept_HW is None:
        kept_HW = torch.ones(size, dtype=torch.bool, device=cpu)
    number_HW = (kept_HW[: size[0], : size[1]].flatten().cumsum(0) - 1).view(size)
    number_GN = _in_groups(partition, number_HW, padded, -1)
    kept_GN = _in_groups(partition, kept_HW[: padded[0], : padded[1]], padded, 1).bool()
    order_GN = (~kept_GN).int().argsort(dim=1, stable=True)[:, : int(kept_GN.sum(1).max())]
    there_GN = kept_GN.gather(1, order_GN)
    index_GN = torch.where(there_GN, number_GN.gather(1, order_GN), -1)
    all_HW = torch.arange(padded[0] * padded[1], device=cpu).view(padded)
    place_GN = _in_groups(partition, all_HW, padded, -1).gather(1, order_GN)
    label_GN = partition.labels(*padded, cpu)
    if label_GN is None and there_GN.all():
        return index_GN, None, place_GN
    label_GN = torch.zeros_like(order_GN) if label_GN is None else label_GN.gather(1, order_GN)
    return index_GN, torch.where(there_GN, label_GN, UNSEEN), place_GN


def _in_groups(partition: Partition, x_HW: Tensor, padded: tuple[int, int], padding: int) -> Tensor:
    """(H, W) -> (groups of one image, N)."""
    value = torch.tensor([padding], device="cpu")
    return partition.split(pad_tokens(x_HW.long()[None, :, :, None], padded, value)).flatten(1)
