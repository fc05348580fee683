"""Words of studies, rows and users: read, and put into a config."""

import ast
import inspect
import shlex
from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from backbones import SIZES, ViT

from ..errors import UserError, unknown
from ..studies import Words
from .config import class_name, is_recipe

_NOT_BY_OVERRIDE = {
    "train.seed": "choose with SEEDS=",
    "dataloader.train.dataset": "choose with DATASET= and VAL=",
    "dataloader.test.dataset": "choose with DATASET= and VAL=",
    "model.roi_heads.num_classes": "it is the data set's number of categories",
    "model.num_classes": "it is the data set's number of categories",
}


def set_words(cfg: DictConfig, words: Words, where: str, kinds: DictConfig | None = None) -> None:
    """Set keys that the config has. Another named size of an encoder comes with all its words.

    Args:
        where: who asks, for the message.
        kinds: what was there before others set words, which says what a key takes; None: `cfg`.

    Raises:
        UserError: a key that is not there, with the nearest one.
    """
    for key, value in words.items():
        parent, _, leaf = key.rpartition(".")
        if leaf == "size" and _is_encoder(node := OmegaConf.select(cfg, parent)):
            _take_size(node, value, where)
    for key, value in words.items():
        parent, _, leaf = key.rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else cfg
        unsaid = _unsaid(OmegaConf.select(kinds or cfg, parent) if parent else None, node)
        if not OmegaConf.is_dict(node) or leaf not in {*node, *unsaid}:
            said = [*_keys(cfg), *(f"{parent}.{word}" for word in unsaid)]
            raise unknown("config key", key, said, f" in {where}")
        old = unsaid.get(leaf, OmegaConf.select(kinds or cfg, key))
        if not _same_kind(old, value) and (leaf, value) != ("qkv_bias", "qv"):
            raise UserError(f"config key {key!r} in {where} is {value!r}: it takes {_kind(old)}")
        if leaf in unsaid and value == old:
            node.pop(leaf, None)  # said or not, it is the same run
        else:
            OmegaConf.update(cfg, key, value, merge=False, force_add=True)


def _is_encoder(node: DictConfig | None) -> bool:
    """Whether a config's node makes a `ViT` of a named size."""
    if not OmegaConf.is_dict(node) or "_target_" not in node or "size" not in node:
        return False
    return class_name(node) in ("build_backbone", "build_encoder")


def _take_size(encoder: DictConfig, size: str, where: str) -> None:
    """Give it another named size with all words of that, in place of those that the config has for
    its own; images keep their size.

    Raises:
        UserError: there is no such size.
    """
    if size not in SIZES:
        raise unknown("size", str(size), SIZES, f" in {where}")
    if size == encoder.size:
        return
    old, new = SIZES.get(encoder.size, {}), SIZES[size]
    plain = {k: p.default for k, p in inspect.signature(ViT).parameters.items()}
    plain["block_norm"] = "layer"
    for word in ({*old, *new} & {*encoder}) - {"img_size"}:
        encoder[word] = new.get(word, plain.get(word))
    encoder.size = size


def _unsaid(base: DictConfig | None, node: DictConfig | None) -> Words:
    """Words of a ViT that its config leaves at their defaults, with these.

    Args:
        base: the config's node before anyone set words in it.
        node: as it is.
    """
    if not _is_encoder(base):
        return {}
    defaults = {k: p.default for k, p in inspect.signature(ViT).parameters.items()}
    own = SIZES.get(node.size, {})
    return {k: own.get(k, v) for k, v in defaults.items() if k not in base and not callable(v)}


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int):
        return "a whole number"
    if isinstance(value, float):
        return "a number"
    if isinstance(value, DictConfig):
        return "keys of its own"
    return "a word" if isinstance(value, str) else "a list"


def _same_kind(old: Any, new: Any) -> bool:
    """Whether a value may stand where another stood; None, "not set", may where a number is."""
    if old is None:
        return True
    if isinstance(old, DictConfig):
        return isinstance(new, dict)
    if new is None:
        return isinstance(old, float)
    if isinstance(old, bool) or isinstance(new, bool):
        return isinstance(old, bool) and isinstance(new, bool)
    if isinstance(old, float):
        return isinstance(new, (int, float))
    if OmegaConf.is_list(old):
        return isinstance(new, (list, tuple))
    return isinstance(new, type(old))


def _keys(cfg: DictConfig, prefix: str = "") -> list[str]:
    """All dotted keys of the config."""
    keys = []
    for key in cfg:
        keys.append(prefix + str(key))
        node = cfg._get_node(key)
        if isinstance(node, DictConfig):
            keys += _keys(node, f"{prefix}{key}.")
    return keys


def number(cfg: DictConfig, key: str, where: str) -> int | float:
    """What a config has under a dotted key.

    Args:
        where: who asks, for the message.

    Raises:
        UserError: there is no such key, with the nearest one, or no number.
    """
    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    if not OmegaConf.is_dict(node) or leaf not in node:
        raise unknown("config key", key, _keys(cfg), f" in {where}")
    found = OmegaConf.select(cfg, key)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise UserError(f"config key {key!r} in {where} is {found!r}, no number to multiply")
    return found


def parse_override(text: str) -> tuple[str, Any]:
    """ "a.b=c" as key and Python value; what is no Python literal is a string.

    Raises:
        UserError: no "=" in it.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"override {text!r} is not of the form a.b=c")
    for word, constant in (("true", True), ("false", False), ("null", None)):
        if value.lower() == word:
            return key, constant
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def parse_overrides(text: str) -> Words:
    """Overrides between spaces, quoted as in a shell where a value has spaces.

    Raises:
        UserError: as of `parse_override`, or a quote that does not end.
    """
    try:
        return dict(parse_override(part) for part in shlex.split(text))
    except ValueError as error:
        raise UserError(f"overrides {text!r} cannot be split: {error}") from error


def split_overrides(words: Words) -> tuple[Words, Words]:
    """Those of detection configs, and those of pre-training, "pretraining.a.b", without that."""
    prefix = "pretraining."
    own = {k.removeprefix(prefix): v for k, v in words.items() if k.startswith(prefix)}
    return {k: v for k, v in words.items() if not k.startswith(prefix)}, own


def check_overrides(words: Words, where: str = "OVERRIDES") -> None:
    """
    Raises:
        UserError: a key that is set elsewhere.
    """
    for key in words.keys() & _NOT_BY_OVERRIDE.keys():
        raise UserError(f"{key} in {where} has no effect: {_NOT_BY_OVERRIDE[key]}")


def check_pretraining_words(cfgs: Iterable[DictConfig], words: Words, images: str = "") -> None:
    """
    Args:
        cfgs: of the detectors.
        words: of their pre-training.
        images: of their pre-training, if the user gave some.

    Raises:
        UserError: something is said of pre-training, and no detector starts from a recipe.
    """
    if any(is_recipe(cfg.train.init_weights) for cfg in cfgs):
        return
    said = [*(f"pretraining.{key}" for key in words), *(["IMAGES"] if images else [])]
    if said:
        raise UserError(
            f"{said[0]} has no effect: no row starts from a recipe, "
            "as with OVERRIDES=train.init_weights=recipe:mae"
        )
