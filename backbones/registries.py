"""The registries a variant plugs into, and the one way to look a name up in them.

A registered entry is chosen by its word, in a config, a study row or a constructor:
``propagation="conv"``. See docs/your-own-variant.md.
"""

import difflib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from fvcore.common.registry import Registry

T = TypeVar("T")


class WordRegistry(Registry):
    """fvcore's Registry, keyed by the word that configs use (Python has its own `global`)."""

    def register(self, word: str) -> Callable[[T], T]:
        """Decorator that registers a class or function as `word`."""

        def add(entry: T) -> T:
            self._do_register(word, entry)
            return entry

        return add


# Cross-window propagation strategies: subclasses of `Propagation`.
PROPAGATIONS = WordRegistry("PROPAGATIONS")
# Residual conv blocks: `(dim) -> nn.Module` on (B, C, H, W).
CONV_BLOCKS = WordRegistry("CONV_BLOCKS")
# Necks: `(net, in_feature, out_channels, ...) -> detectron2 Backbone`.
PYRAMIDS = WordRegistry("PYRAMIDS")
# Image to tokens: `(patch_size, in_chans, embed_dim) -> nn.Module`, (B, C, H, W) to (B, h, w, C).
STEMS = WordRegistry("STEMS")
# The blocks' norms: `(channels) -> nn.Module` on (B, H, W, C), or (B, T, 1, C) for T tokens of it.
NORMS = WordRegistry("NORMS")
# The MLPs' activations: `() -> nn.Module`, of each number alone.
ACTIVATIONS = WordRegistry("ACTIVATIONS")


def choose(argument: str, value: Any, allowed: Iterable[str]) -> str:
    """Return `value` if it is one of `allowed`.

    Raises:
        ValueError: naming the argument, its value, the nearest allowed word and all of them.
    """
    allowed = list(allowed)
    if value in allowed:
        return value
    near = difflib.get_close_matches(str(value), allowed, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"{argument}={value!r} is unknown: {hint}allowed are {', '.join(allowed)}")


def lookup(registry: Registry, argument: str, name: str) -> Any:
    """The entry of `registry` called `name`; a ValueError as of `choose` if there is none."""
    return registry.get(choose(argument, name, (key for key, _ in registry)))
