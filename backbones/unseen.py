"""What an encoder computes and no weight of it shows, in its state dict."""

import json
from typing import Any

import torch
from torch import Tensor, nn

KEY = "unseen._extra_state"  # in an encoder's state dict
_BYTES = 1024  # of any words: checkpointers compare shapes


class Unseen(nn.Module):
    """Words of an encoder that leave no weight, as JSON in a tensor of bytes.

    It is torch's extra state, no parameter and no buffer. With it a file that anyone writes of the
    encoder says what it is of, and a strict `load_state_dict` refuses it elsewhere.

    Args:
        words: numbers and words by name, and dicts of them.
    """

    def __init__(self, words: dict[str, Any]):
        super().__init__()
        self.words = words

    def get_extra_state(self) -> Tensor:
        text = json.dumps(self.words).encode().ljust(_BYTES)
        return torch.tensor(list(text), dtype=torch.uint8, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Nothing, where it is the same.

        Raises:
            ValueError: the state is of an encoder that computes otherwise.
        """
        if (theirs := read_words(state)) != self.words:
            raise ValueError(f"the weights are of an encoder with {theirs}, not {self.words}")


def read_words(state: Tensor) -> dict[str, Any]:
    """
    Raises:
        ValueError: there are none in it.
    """
    try:
        words = json.loads(bytes(state.flatten()[: 2 * _BYTES].tolist()))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{KEY} has no words") from error
    if not isinstance(words, dict):
        raise ValueError(f"{KEY} has no words")
    return words
