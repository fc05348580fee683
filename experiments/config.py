"""From a study row to one resolved config, and to the fingerprint that identifies a run."""

import ast
import hashlib
import inspect
import json
import os
from pathlib import Path
from typing import Any

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.utils.registry import _convert_target_to_string
from omegaconf import DictConfig, OmegaConf

from backbones import CONV_BLOCKS, PROPAGATIONS, PYRAMIDS, SIZES, STEMS

from .errors import UserError, unknown
from .studies import Study, Variant, Words

ROOT = Path(__file__).resolve().parents[1]
# Base config of each scale and size: what the paper or the suite recommends there.
BASES = {
    "mini": {"vit-mini": "configs/mini/mask_rcnn_vit_mini.py"},
    "coco": {
        "vit-ti": "configs/coco/mask_rcnn_vit_ti.py",
        "vit-b": "configs/coco/mask_rcnn_vit_b.py",
        "vit-l": "configs/coco/mask_rcnn_vit_l.py",
        "vit-h": "configs/coco/mask_rcnn_vit_h.py",
    },
}
# What does not change the result of a run, and so is no part of its identity.
_NOT_IDENTITY = (
    "train.checkpoint_period",
    "train.log_period",
    "dataloader.train.num_workers",
    "dataloader.test.num_workers",
    "dataloader.test.batch_size",
)
_REQUIRED = ("model", "dataloader", "optimizer", "param_groups", "schedule", "train")


def check_scale(scale: str) -> None:
    """Raises UserError for an unknown scale."""
    if scale not in BASES:
        raise unknown("scale", scale, BASES)


def base_path(scale: str, size: str) -> Path:
    """The base config's file.

    Raises:
        UserError: unknown scale, unknown size, or a size that the scale has no recipe for.
    """
    check_scale(scale)
    if size not in SIZES:
        raise unknown("size", size, SIZES)
    if size not in BASES[scale]:
        allowed = ", ".join(BASES[scale])
        raise UserError(f"size {size!r} has no recipe at scale {scale!r}: there are {allowed}")
    return ROOT / BASES[scale][size]


def load(path: str | Path) -> DictConfig:
    """A training config from a LazyConfig file (.py, or the .yaml kept with a run).

    Raises:
        UserError: there is no such file, it cannot be read, or parts are missing.
    """
    if not Path(path).is_file():
        raise UserError(f"no config at {path}: give a .py under configs/ or a run's config.yaml")
    try:
        cfg = LazyConfig.load(str(path))
    except Exception as error:
        raise UserError(f"cannot read the config {path}: {str(error).splitlines()[0]}") from error
    missing = [part for part in _REQUIRED if part not in cfg]
    if missing:
        raise UserError(
            f"the config {path} lacks {', '.join(missing)}: see configs/coco for whole ones"
        )
    return cfg


def set_words(cfg: DictConfig, words: Words, where: str) -> None:
    """Set keys that the config has.

    Args:
        where: who asks, for the message.

    Raises:
        UserError: a key that is not there, with the nearest one.
    """
    for key, value in words.items():
        parent, _, leaf = key.rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else cfg
        if not OmegaConf.is_dict(node) or leaf not in node:
            raise unknown("config key", key, _keys(cfg), f" in {where}")
        OmegaConf.update(cfg, key, value, merge=False, force_add=False)


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


def resolve(
    study: Study, variant: Variant, scale: str, size: str, seed: int, overrides: Words
) -> DictConfig:
    """The config of one run: base, then the study's words, the row's, the user's.

    Raises:
        UserError: as of `base_path` and `set_words`.
    """
    cfg = load(base_path(scale, size))
    set_words(cfg, study.words, f"study {study.name!r}")
    row = {**variant.words, **variant.words_of_size.get(size, {})}
    set_words(cfg, row, f"variant {variant.name!r}")
    set_words(cfg, overrides, "OVERRIDES")
    cfg.train.seed = seed
    cfg.train.amp = bool(cfg.train.amp) and computes_bfloat16()
    _check_backbone(cfg, variant)
    return cfg


def _check_backbone(cfg: DictConfig, variant: Variant) -> None:
    """Build it without memory: a word that does not fit is found before anything trains."""
    try:
        with torch.device("meta"):
            instantiate(cfg.model.backbone)
    except ValueError as error:
        raise UserError(f"variant {variant.name!r}: {error}") from error


def computes_bfloat16() -> bool:
    """Whether this machine's accelerator, or else its CPU, multiplies in bfloat16 natively."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def fingerprint(cfg: DictConfig, data_digest: str) -> str:
    """Sixteen hex digits that identify a run: its config, its data, and the source of variants
    that are not part of this suite (editing your own class makes a new run)."""
    plain = plain_config(cfg)
    for key in _NOT_IDENTITY:
        *parents, leaf = key.split(".")
        node = plain
        for parent in parents:
            node = node[parent]
        node.pop(leaf, None)
    words = {str(v) for v in plain["model"].get("backbone", {}).values()}
    foreign = {
        word: inspect.getsource(entry)
        for registry in (PROPAGATIONS, CONV_BLOCKS, PYRAMIDS, STEMS)
        for word, entry in registry
        if word in words and not entry.__module__.startswith("backbones.")
    }
    identity = json.dumps([plain, data_digest, foreign], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


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


def _keys(cfg: DictConfig, prefix: str = "") -> list[str]:
    """All dotted keys of the config."""
    keys = []
    for key in cfg:
        keys.append(prefix + str(key))
        node = cfg._get_node(key)
        if isinstance(node, DictConfig):
            keys += _keys(node, f"{prefix}{key}.")
    return keys


def check_writable(folder: Path) -> None:
    """Make the folder, and a file in it.

    Raises:
        UserError: no permission or no space.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.write_bytes(b"\0" * 4096)
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror}. Give another with --runs"
        ) from error
