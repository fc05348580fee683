"""Cross-window propagation: how, and in which blocks, windows exchange information.

Most blocks of the encoder attend inside windows. In its propagation blocks a strategy changes what
tokens attend to, or adds a module behind the block. The strategies here are those of Table 2a / 8a
of arXiv:2203.16527; a new one is one registered subclass of `Propagation`, or of `Partition`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from .arguments import whole_number
from .partition import Partition, ShiftedWindows, Windows
from .registries import CONV_BLOCKS, PROPAGATIONS, accepted, choose, lookup, read_word

PLACEMENTS = ("even", "first", "last")


@dataclass(frozen=True)
class EncoderSpec:
    """What a strategy may know of the encoder it is used in."""

    dim: int  # channels of a token
    depth: int  # blocks
    num_heads: int
    window_size: int  # tokens along a window's side


class Propagation:
    """One strategy. Override `partition`, `residual` or both.

    Args:
        encoder: the encoder this strategy is built for. A strategy's other arguments are set in
            its word: ``propagation="conv(conv_block=basic)"``.
    """

    def __init__(self, encoder: EncoderSpec):
        self.encoder = encoder

    def default_count(self) -> int:
        """Propagation blocks when the user names no number: four, the paper's default.

        An encoder of fewer than eight blocks propagates in every second block.
        """
        return min(4, self.encoder.depth // 2)

    def partition(self, block: int) -> Partition:
        """What tokens attend to in a propagation block, by its number in the encoder, from 0."""
        return Windows(self.encoder.window_size)

    def residual(self, block: int) -> nn.Module | None:
        """A module on (B, C, H, W) behind that block; its output replaces the map."""
        return None


class Grouping(Propagation):
    """Of a registered `Partition`: propagation blocks attend within its groups.

    Args:
        partition: the class. Of its arguments, `size` is the encoder's window unless the word sets
            it, `block` is the block's number.
        word: by which the blocks go, where the class has none of its own.
        **words: its arguments that the word sets.
    """

    def __init__(
        self, encoder: EncoderSpec, partition: type[Partition], word: str, words: dict[str, Any]
    ):
        super().__init__(encoder)
        self._class, self._word, self._words = partition, word, words

    def partition(self, block: int) -> Partition:
        given = accepted(self._class, size=self.encoder.window_size, block=block)
        partition = self._class(**given | self._words)
        if "word" not in vars(self._class):
            partition.word = self._word
        return partition


def strategy(word: str, encoder: EncoderSpec, **words: Any) -> Propagation:
    """The strategy of a word.

    Args:
        word: of `PROPAGATIONS`, with arguments of its own or without.
        **words: arguments that a strategy which has them gets where its word does not set them.

    Raises:
        ValueError: an unknown word or argument.
    """
    entry, own = read_word(PROPAGATIONS, "propagation", word)
    if isinstance(entry, type) and issubclass(entry, Partition):
        return Grouping(encoder, entry, word, own)
    return entry(encoder, **accepted(entry, **words) | own)


@PROPAGATIONS.register("none")
class NoPropagation(Propagation):
    """Windows never exchange information."""

    def default_count(self) -> int:
        return 0


@PROPAGATIONS.register("global")
class GlobalPropagation(Propagation):
    """Propagation blocks attend over all tokens."""

    def partition(self, block: int) -> Partition:
        return Partition()


@PROPAGATIONS.register("conv")
class ConvPropagation(Propagation):
    """A residual conv block behind each propagation block.

    Args:
        conv_block: a word of `CONV_BLOCKS`.
    """

    def __init__(self, encoder: EncoderSpec, conv_block: str = "bottleneck"):
        super().__init__(encoder)
        self.conv_block = lookup(CONV_BLOCKS, "conv_block", conv_block)

    def residual(self, block: int) -> nn.Module:
        return self.conv_block(self.encoder.dim)


@PROPAGATIONS.register("shifted")
class ShiftedPropagation(Propagation):
    """The window grid moves by half a window in every second block, as in Swin."""

    def default_count(self) -> int:
        return self.encoder.depth // 2

    def partition(self, block: int) -> Partition:
        return ShiftedWindows(self.encoder.window_size)


def block_count(strategy: Propagation, count: int | str | None) -> int:
    """How many blocks propagate: `count`, "all" of the encoder's, or None: the strategy's own.

    Raises:
        ValueError: another word.
    """
    if count is None:
        return strategy.default_count()
    if count == "all":
        return strategy.encoder.depth
    if isinstance(count, str):
        raise ValueError(f"count={count!r} does not fit: a whole number or 'all' does")
    return count


def propagation_blocks(depth: int, count: int, placement: str) -> tuple[int, ...]:
    """Indexes of the blocks that propagate.

    Args:
        depth: blocks of the encoder.
        count: how many of them propagate.
        placement: "even": the last block of each of `count` subsets of equal length (as equal as
            `depth` allows), the paper's default; "first" or "last": the first or last `count`.

    Raises:
        ValueError: `count` outside 0..depth, or an unknown placement.
    """
    choose("placement", placement, PLACEMENTS)
    if whole_number("count", count, least=0) > depth:
        raise ValueError(
            f"count={count} does not fit: an encoder of depth={depth} allows 0..{depth}"
        )
    if placement == "first":
        return tuple(range(count))
    if placement == "last":
        return tuple(range(depth - count, depth))
    return tuple((i + 1) * depth // count - 1 for i in range(count))


Role = tuple[Partition, nn.Module | None]  # of a block: its partition, its residual module


def roles_of_words(chosen: Propagation, count: int | str | None, placement: str) -> list[Role]:
    """Of each block, first to last: `count` and `placement` as of `block_count` and
    `propagation_blocks`."""
    depth, windows = chosen.encoder.depth, Windows(chosen.encoder.window_size)
    propagating = propagation_blocks(depth, block_count(chosen, count), placement)
    return _shared(
        (chosen.partition(i), chosen.residual(i)) if i in propagating else (windows, None)
        for i in range(depth)
    )


def roles_of_indexes(
    spec: EncoderSpec,
    windowed: Sequence[int] | None,
    residual: Sequence[int] | None,
    conv_block: Callable[[int], nn.Module],
) -> list[Role]:
    """As detectron2's `ViT` says them: blocks that use windows, and those with a conv block behind.

    Raises:
        ValueError: an index of no block.
    """
    windowed, residual = windowed or (), residual or ()
    for argument, indexes in (
        ("window_block_indexes", windowed),
        ("residual_block_indexes", residual),
    ):
        if not isinstance(indexes, Iterable) or not set(indexes) <= set(range(spec.depth)):
            raise ValueError(
                f"{argument}={indexes!r} does not fit: indexes in 0..{spec.depth - 1} do"
            )
    windows = Windows(spec.window_size)
    return _shared(
        (
            windows if i in windowed else Partition(),
            conv_block(spec.dim) if i in residual else None,
        )
        for i in range(spec.depth)
    )


def _shared(roles: Iterable[Role]) -> list[Role]:
    """Equal groupings as one object: what depends on them is worked out once in a pass."""
    found: dict[tuple, Partition] = {}
    return [
        (found.setdefault(_kind(partition), partition), residual) for partition, residual in roles
    ]


def _kind(partition: Partition) -> tuple:
    said = sorted(vars(partition).items())
    simple = all(isinstance(value, int | float | str) for _, value in said)
    return (type(partition), *(said if simple else [id(partition)]))
