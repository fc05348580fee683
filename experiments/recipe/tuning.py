"""Which parts of an encoder train: the word `train.tuning`."""

from types import MethodType

from torch import nn

from backbones import Encoder

from ..errors import UserError, unknown
from .optim import layers

FULL, FROZEN = "full", "frozen"


def freeze(encoder: nn.Module, tuning: str) -> None:
    """Keep parts of an encoder as they are while the rest of its detector trains.

    They have no gradients, so that nothing of a forward pass through the first of them is kept, and
    stay in evaluation mode whatever the model is put in: no drop path, batch norm by its running
    statistics, and, where all is frozen, no tokens left out.

    Args:
        encoder: changed in place.
        tuning: "full": nothing stays as it is; "last:<n>": all up to the last n blocks, by
            `optim.layers`, of a ViT; "frozen": all.

    Raises:
        UserError: another word, or one that does not fit the encoder.
    """
    for part in _frozen(encoder, tuning):
        part.requires_grad_(False)
        if isinstance(part, nn.Module):
            part.eval()
            part.train = MethodType(_stay, part)


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def _frozen(encoder: nn.Module, tuning: str) -> list[nn.Module | nn.Parameter]:
    if tuning == FULL:
        return []
    if tuning == FROZEN:
        return [encoder]
    word, _, count = tuning.partition(":")
    if word != "last":
        raise unknown("train.tuning", tuning, (FULL, "last:<n>", FROZEN))
    if not isinstance(encoder, Encoder):
        raise UserError(
            f"train.tuning={tuning} is for a plain ViT, not for {type(encoder).__name__}: "
            f"{FULL} and {FROZEN} are for others"
        )
    depth = len(encoder.blocks)
    if not count.isdecimal() or not 1 <= int(count) <= depth:
        raise UserError(
            f"train.tuning={tuning} does not fit an encoder of {depth} blocks: "
            f"last:1 to last:{depth} do, or {FROZEN}"
        )
    return [part for layer in layers(encoder)[: 1 + depth - int(count)] for part in layer]
