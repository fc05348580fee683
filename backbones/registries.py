"""The registries a variant plugs into, and the one way to look a name up in them.

A registered entry is chosen by its word, in a config, a study row or a constructor:
``propagation="conv"``. A word may set arguments of its entry, as numbers, words, true or false:
``propagation="grid(size=7)"``. See docs/your-own-variant.md.
"""

import ast
import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from fvcore.common.registry import Registry

T = TypeVar("T")


class WordRegistry(Registry):
    """fvcore's Registry, keyed by the word that configs use (Python has its own `global`).

    Args:
        gives: arguments that an entry gets from the encoder, and no word sets.
    """

    def __init__(self, name: str, gives: Iterable[str] = ()):
        super().__init__(name)
        self.gives = frozenset(gives)

    def register(self, word: str) -> Callable[[T], T]:
        """Decorator that registers a class or function as `word`."""

        def add(entry: T) -> T:
            self._do_register(word, entry)
            return entry

        return add


# Cross-window propagation strategies: subclasses of `Propagation`, or of `Partition`.
PROPAGATIONS = WordRegistry("PROPAGATIONS", gives=("encoder", "block"))
# Residual conv blocks: `(dim) -> nn.Module` on (B, C, H, W).
CONV_BLOCKS = WordRegistry("CONV_BLOCKS", gives=("dim",))
# Necks: `(net, in_feature, out_channels, ...) -> detectron2 Backbone`.
PYRAMIDS = WordRegistry(
    "PYRAMIDS",
    ("net", "in_feature", "out_channels", "scale_factors", "top_block", "norm", "square_pad"),
)
# Positions: `(side, has_cls_token, dim) -> nn.Parameter` of absolute ones, or None; and `Rope`.
POSITIONS = WordRegistry("POSITIONS", gives=("side", "has_cls_token", "dim"))
# MLPs of the blocks: `(dim, hidden, act_layer, norm_layer) -> nn.Module`, those that it names.
MLPS = WordRegistry("MLPS", gives=("dim", "act_layer", "norm_layer"))
# Image to tokens: `(patch_size, in_chans, embed_dim) -> nn.Module`, (B, C, H, W) to (B, h, w, C).
STEMS = WordRegistry("STEMS", gives=("patch_size", "in_chans", "embed_dim"))
# The blocks' norms: `(channels) -> nn.Module` on (B, H, W, C), or (B, T, 1, C) for T tokens of it.
NORMS = WordRegistry("NORMS", gives=("channels", "num_features"))
# The MLPs' activations: `() -> nn.Module`, of each number alone.
ACTIVATIONS = WordRegistry("ACTIVATIONS")
REGISTRIES = (PROPAGATIONS, CONV_BLOCKS, PYRAMIDS, POSITIONS, MLPS, STEMS, NORMS, ACTIVATIONS)


def choose(argument: str, value: Any, allowed: Iterable[Any]) -> Any:
    """Return `value` if it is one of `allowed`.

    Raises:
        ValueError: naming the argument, its value, the nearest allowed word and all of them.
    """
    allowed = list(allowed)
    if value in allowed:
        return value
    allowed = [str(word) for word in allowed]
    near = difflib.get_close_matches(str(value), allowed, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"{argument}={value!r} is unknown: {hint}allowed are {', '.join(allowed)}")


def name_of(word: Any) -> str:
    """Of the entry: "grid" of "grid(size=7)"."""
    return str(word).partition("(")[0].strip()


def lookup(registry: WordRegistry, argument: str, word: str) -> Any:
    """The entry of a word, with the arguments that it sets; errors as of `read_word`."""
    entry, own = read_word(registry, argument, word)
    return functools.partial(entry, **own) if own else entry


def read_word(registry: WordRegistry, argument: str, word: str) -> tuple[Any, dict[str, Any]]:
    """The entry of a word, and the arguments that it sets, {"size": 7} of "grid(size=7)".

    Raises:
        ValueError: there is no such entry, as of `choose`; or it has no such argument, or the word
            cannot be read.
    """
    words = [key for key, _ in registry]
    if not isinstance(word, str) or word in words:
        return registry.get(choose(argument, word, words)), {}
    entry = registry.get(choose(argument, name_of(word), words))
    try:
        call = ast.parse(f"_{word.strip()[len(name_of(word)) :]}", mode="eval").body
        own = {k.arg: _value(k.value) for k in call.keywords}
        if call.args or None in own:
            raise ValueError
    except (ValueError, SyntaxError, AttributeError) as error:
        raise ValueError(
            f"{argument}={word!r} cannot be read: {name_of(word)}(name=value, ...) can, with "
            "numbers, words, true or false as values"
        ) from error
    known = [name for name in inspect.signature(entry).parameters if name not in registry.gives]
    for name in own:
        if not known:
            raise ValueError(f"{argument}={word!r}: {name_of(word)} has no arguments")
        choose(f"{argument}={word!r}: argument", name, known)
    return entry, own


def accepted(entry: Callable, **words: Any) -> dict[str, Any]:
    """Those of the words that are arguments of `entry`."""
    parameters = inspect.signature(entry).parameters
    return {k: v for k, v in words.items() if k in parameters}


def _value(node: ast.expr) -> Any:
    """A literal, or a word without quotes."""
    if isinstance(node, ast.Name):
        return {"true": True, "false": False, "none": None}.get(node.id, node.id)
    return ast.literal_eval(node)
