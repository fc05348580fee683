"""Initial values that do not depend on what else a model has.

With one seed in front of a constructor, whatever draws more shifts all that follows. Here each draw
is seeded by the name of what it is for: a parameter that two rows of a study have, initialised in
the same way, begins with the same numbers in both.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..errors import UserError


def construct(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """The model that `build` makes, with initial values by seed and name.

    It is made twice: only when it is there have its parameters names. Each of the constructor's
    random operations goes with the first parameter, else buffer, that holds what came of it, and is
    seeded by (seed, that name, how many of the name's came before). Operations that go with none
    are seeded by their number. Random numbers from elsewhere than torch are as they were.

    Torch's global generators are seeded with `seed` afterwards.

    Raises:
        UserError: the constructor draws other random numbers each time it is called.
    """
    with _Draws(seed, []) as first:
        names = first.names(build())
    with _Draws(seed, names) as second:
        model = build()
    if first.drawn != second.drawn:
        raise UserError(
            f"{type(model).__name__} does not draw the same random numbers each time it is made: "
            "initial values would not follow from the seed. Draw in __init__, with torch, and keep "
            "nothing from one construction to the next"
        )
    torch.manual_seed(seed)
    return model


class _Draws(TorchDispatchMode):
    """Seeds each random operation, and follows where its numbers go.

    Args:
        names: of the operations, in order; those beyond have none.
    """

    def __init__(self, seed: int, names: list[str]):
        super().__init__()
        self.seed, self.known = seed, names
        self.drawn: list[str] = []  # the operations' own names
        self.of_name: dict[str, int] = {}  # operations so far
        # By storage: a reference, without which another could have its address, and operations.
        self.held: dict[int, tuple[StorageWeakRef, frozenset[int]]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        found = frozenset().union(*(self._held(t) for t in _tensors((args, kwargs))))
        if torch.Tag.nondeterministic_seeded in func.tags:
            found |= {len(self.drawn)}
            self._seed()
            self.drawn.append(str(func))
        out = func(*args, **kwargs)
        if found:
            for tensor in _tensors(out):
                ref = StorageWeakRef(tensor.untyped_storage())
                self.held[ref.cdata] = (ref, found)
        return out

    def _seed(self) -> None:
        number = len(self.drawn)
        name = self.known[number] if number < len(self.known) else ""
        count = self.of_name.get(name, 0)
        self.of_name[name] = count + 1
        words = np.random.SeedSequence([self.seed, count, *name.encode()])
        torch.manual_seed(int(words.generate_state(1, np.uint64)[0]))

    def _held(self, tensor: Tensor) -> frozenset[int]:
        return self.held.get(tensor.untyped_storage()._cdata, (None, frozenset()))[1]

    def names(self, model: nn.Module) -> list[str]:
        """Of the operations so far, what they are for in the model; "" for nothing in it."""
        names = [""] * len(self.drawn)
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            for number in self._held(tensor):
                names[number] = names[number] or name
        return names


def _tensors(tree: Any) -> list[Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor) and t.layout == torch.strided]
