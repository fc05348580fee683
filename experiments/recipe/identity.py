"""What makes two runs the same run: of a config, what its fingerprint is made of."""

import copy
import functools
import hashlib
import inspect
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.utils.registry import _convert_target_to_string
from omegaconf import DictConfig, OmegaConf

from backbones.registries import REGISTRIES

from ..errors import UserError
from ..records import NOT_IDENTITY, SINCE
from .config import group, init_weights, is_recipe

# Part of every run's identity: raise it when the same config comes to train otherwise.
# 2: initial values follow from seed and name, heads' random numbers from their own seeds.
PROCEDURE = 2


def fingerprint(cfg: DictConfig, data_digest: str) -> str:
    """Sixteen hex digits that identify a run: its config, its data, its initial weights, and the
    source file of variants that are not part of this suite (editing it makes a new run)."""
    return _identity(cfg, data_digest, NOT_IDENTITY)


def training_fingerprint(cfg: DictConfig, data_digest: str) -> str:
    """As `fingerprint`, of training alone: runs that differ at test time only have the same."""
    return _identity(cfg, data_digest, (*NOT_IDENTITY, "test", "dataloader.test"))


def _identity(cfg: DictConfig, data_digest: str, without: Sequence[str]) -> str:
    # The weights themselves count, not the word or the folder that they are found by.
    no_part = (*without, "train.init_weights", "dataloader.train.loss_batch_size")
    plain = without_keys(plain_config(cfg), no_part)
    unsaid = [key for key, value in SINCE.items() if OmegaConf.select(cfg, key) == value]
    plain = without_keys(plain, unsaid)
    # By the names of before there was `loss_batch_size`: runs of this `PROCEDURE` are found.
    plain["dataloader"]["train"]["micro_batch_size"] = group(cfg)
    if "use_act_checkpoint" in cfg.model.get("backbone", {}):
        plain["model"]["backbone"]["use_act_checkpoint"] = False
    encoder = plain["model"].get("backbone") or plain["model"].get("encoder", {})
    parts = [plain, data_digest, _weights_digest(cfg), foreign(encoder), PROCEDURE]
    identity = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def foreign(encoder: dict) -> dict[str, str]:
    """Source files of what an encoder's words name that is not part of this suite, by word.

    Args:
        encoder: of a plain config.
    """
    words = {name for v in encoder.values() for name in re.findall(r"[\w-]+", str(v))}
    return {
        word: inspect.getsource(inspect.getmodule(entry))
        for registry in REGISTRIES
        for word, entry in registry
        if word in words and not entry.__module__.startswith("backbones.")
    }


def without_keys(plain: dict, keys: Sequence[str]) -> dict:
    """A copy of a plain config without some dotted keys, whether it has them or not."""
    plain = copy.deepcopy(plain)
    for key in keys:
        *parents, leaf = key.split(".")
        node = plain
        for parent in parents:
            node = node.get(parent, {})
        node.pop(leaf, None)
    return plain


def _weights_digest(cfg: DictConfig) -> str:
    """Of the initial weights, "" if random; while they are missing, the word for them; pre-trained
    here, the pre-training's name, which ends in its own fingerprint."""
    if is_recipe(cfg.train.init_weights):
        return cfg.train.init_weights
    try:
        path = init_weights(cfg)
    except UserError:
        return cfg.train.init_weights
    return _file_digest(path.absolute()) if path else ""


@functools.cache
def _file_digest(path: Path) -> str:
    """Of a file, or of the files in a folder (transformers' `save_pretrained`)."""
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file())
        return json.dumps([(p.name, _file_digest(p)) for p in files])
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plain_config(cfg: DictConfig) -> dict:
    """The resolved config as plain data; classes and functions by their dotted name."""

    def plain(node: Any) -> Any:
        if isinstance(node, dict):
            return {k: plain(v) for k, v in node.items()}
        if isinstance(node, (list, tuple)):
            return [plain(v) for v in node]
        return (
            node
            if node is None or isinstance(node, (str, int, float, bool))
            else (_convert_target_to_string(node))
        )

    return plain(OmegaConf.to_container(cfg, resolve=True))
