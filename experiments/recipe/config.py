"""From a study row to one resolved config, and to the fingerprint that identifies a run."""

import ast
import copy
import fcntl
import functools
import hashlib
import inspect
import json
import os
import platform
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detectron2.config import LazyCall, LazyConfig, instantiate
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.utils.registry import _convert_target_to_string
from omegaconf import DictConfig, OmegaConf
from torch import nn

from backbones import SIZES, ViT
from backbones.meta import on_meta
from backbones.propagation import block_count, strategy
from backbones.registries import REGISTRIES
from backbones.weights import WeightsError, catalog, encoder_of

from .. import CONFIGS
from ..data.subsets import Shares
from ..errors import UserError, unknown
from ..records import NOT_IDENTITY
from ..scales import SCALES
from ..studies import Study, Variant, Words
from . import test_time
from .optim import param_groups
from .tuning import FROZEN, FULL, freeze

if TYPE_CHECKING:
    from ..data.catalog import Data

PRETRAINING = CONFIGS / "pretraining"
_DETECTORS = ("cascade_mask_rcnn", "mask_rcnn", "probe", "retinanet")
RECIPE = "recipe:"  # in train.init_weights: pre-trained here, by a recipe of configs/pretraining
_NOT_BY_OVERRIDE = {
    "train.seed": "choose with SEEDS=",
    "dataloader.train.dataset": "choose with DATASET= and VAL=",
    "dataloader.test.dataset": "choose with DATASET= and VAL=",
    "model.roi_heads.num_classes": "it is the data set's number of categories",
    "model.num_classes": "it is the data set's number of categories",
}
_AT_LEAST = {
    "train.max_iter": 1,
    "train.epochs": 0,
    "train.log_period": 1,
    "train.checkpoint_period": 1,
    "train.checkpoint_minutes": 0,
    "train.may_skip": 0,
    "train.threads": 0,
    "dataloader.train.total_batch_size": 1,
    "dataloader.train.loss_batch_size": 1,
    "dataloader.train.micro_batch_size": 1,
    "dataloader.train.num_workers": 0,
    "dataloader.train.views": 0,
    "dataloader.test.batch_size": 1,
    "dataloader.test.num_workers": 0,
}
_SHARES = ("dataloader.train.share", "dataloader.test.share")
# Named sizes of hierarchical encoders, by class, channels and blocks.
_HIERARCHICAL = {
    ("SwinTransformer", 128, 24): "swin-b",
    ("SwinTransformer", 192, 24): "swin-l",
    ("MViT", 96, 24): "mvitv2-b",
    ("MViT", 144, 48): "mvitv2-l",
    ("MViT", 192, 80): "mvitv2-h",
    ("ConvNeXt", 96, 18): "convnext-t",
    ("ConvNeXt", 96, 36): "convnext-s",
    ("ConvNeXt", 128, 36): "convnext-b",
    ("ConvNeXt", 192, 36): "convnext-l",
}
PARALLEL = ("ddp", "fsdp")
# Words that came later, where runs of before have none: at these values a run is theirs.
_SINCE = {"train.tuning": FULL, "dataloader.train.views": 0}
# Part of every run's identity: raise it when the same config comes to train otherwise.
# 2: initial values follow from seed and name, heads' random numbers from their own seeds.
PROCEDURE = 2
PRETRAINING_PARTS = ("model", "dataloader", "optimizer", "param_groups", "schedule", "train")
_PARTS = (*PRETRAINING_PARTS, "test")


def check_scale(scale: str) -> None:
    """Raises UserError for an unknown scale."""
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)


def base_path(scale: str, size: str, detector: str = "mask_rcnn", dataset: str = "coco") -> Path:
    """The base config's file, for `load`: what the paper or the suite recommends there.

    Raises:
        UserError: unknown scale, or a size that the scale has no recipe for.
    """
    check_scale(scale)
    if detector not in _DETECTORS:
        raise unknown("detector", detector, _DETECTORS)
    # At full scale the folder is the data set's, as in detectron2's ViTDet project.
    folder, of_dataset = (dataset, "") if scale == "coco" else (scale, f"{dataset}_")
    prefix = f"{of_dataset.removeprefix('coco_')}mask_rcnn"
    files = sorted((CONFIGS / folder).glob(f"{prefix}_*.py"))
    of_size = {file.stem.removeprefix(f"{prefix}_").replace("_", "-"): file for file in files}
    if size not in of_size:
        raise unknown("size", size, of_size, f" of configs/{folder}/{prefix}_*")
    return of_size[size].with_name(of_size[size].name.replace("mask_rcnn", detector))


def load(path: str | Path, parts: Sequence[str] = _PARTS) -> DictConfig:
    """A training config from a LazyConfig file (.py, or the .yaml kept with a run).

    Args:
        path: of a file; or one that Mask R-CNN's makes when its detector is another,
            "configs/coco/retinanet_vit_b.py", see configs/common/detectors.py. Either in this
            folder, or as the suite has it.
        parts: that it must have.

    Raises:
        UserError: there is no such file, it cannot be read, or parts are missing.
    """
    file, detector = _file_and_detector(path)
    try:
        cfg = LazyConfig.load(str(file))
        if detector != "mask_rcnn":
            own = file.with_name("_detectors.py")
            makers = own if own.is_file() else CONFIGS / "common" / "detectors.py"
            cfg.model = LazyConfig.load(str(makers), detector)(cfg.model, cfg.dataloader)
    except Exception as error:
        raise UserError(f"cannot read the config {path}: {str(error).splitlines()[0]}") from error
    missing = [part for part in parts if part not in cfg]
    if missing:
        raise UserError(
            f"the config {path} lacks {', '.join(missing)}: see configs/coco for whole ones"
        )
    return cfg


def _file_and_detector(path: str | Path) -> tuple[Path, str]:
    """A config's file, and what is to be made of its Mask R-CNN, that itself if nothing is."""
    for place in (Path(path), CONFIGS.parent / path):
        if place.is_file():
            return place, "mask_rcnn"
        for detector in _DETECTORS:
            base = place.with_name(place.name.replace(detector, "mask_rcnn"))
            if detector in place.name and base.is_file():
                return base, detector
    raise UserError(f"no config at {path}: give a .py under configs/ or a run's config.yaml")


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
    return _class(node) in ("build_backbone", "build_encoder")


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


def resolve(
    study: Study,
    variant: Variant,
    scale: str,
    size: str,
    overrides: Words,
) -> DictConfig:
    """The config of a row: base, then the study's words, the row's, the user's. Seed 0.

    It is what was asked for, the same on every machine: what becomes of it, `train.amp` say, is
    found out, and recorded, where the run trains.

    Args:
        size: of rows that have none of their own.

    Raises:
        UserError: as of `base_path`, `set_words` and `check`; initial weights that are not known.
    """
    size = variant.size or size
    cfg = load(base_path(scale, size, variant.detector or study.detector, study.dataset))
    row = {**variant.words, **variant.words_of_size.get(size, {})}
    # First: what rows and the user say else is over the words of a size.
    size_key = "model.backbone.size"
    if named := {**study.words, **row, **overrides}.get(size_key):
        set_words(cfg, {size_key: named}, f"variant {variant.name!r}")
    base = copy.deepcopy(cfg)
    set_words(cfg, study.words, f"study {study.name!r}", base)
    set_words(cfg, row, f"variant {variant.name!r}", base)
    check_overrides(overrides)
    set_words(cfg, overrides, "OVERRIDES", base)
    if not is_recipe(cfg.train.init_weights):
        try:
            catalog.source(cfg.train.init_weights, encoder_size(cfg))
        except WeightsError as error:
            raise UserError(f"variant {variant.name!r}: train.init_weights: {error}") from error
    backbone = check(cfg, f"variant {variant.name!r}").backbone
    write_out_count(cfg.model.backbone, getattr(backbone, "net", None))
    for key in ("train.epochs", *_SHARES):
        if (value := OmegaConf.select(cfg, key)) is not None:
            OmegaConf.update(cfg, key, float(value))  # 12 or 12.0, it is the same run
    if "epochs" in cfg.train:
        if "train.max_iter" in {**study.words, **row, **overrides}:
            cfg.train.epochs = 0.0
        set_length(cfg, round(shares(cfg).train * SCALES[scale].images[study.dataset][0]))
    return cfg


def shares(cfg: DictConfig) -> Shares:
    """How much of its data a config reads; all, if it does not say."""
    train, test = cfg.dataloader.train, cfg.dataloader.test
    return Shares(
        train.get("share", 1.0), test.get("share", 1.0), cfg.dataloader.get("share_seed", 0)
    )


def check_shares(cfg: DictConfig, where: str) -> None:
    """Raises UserError if a share is none."""
    for key in _SHARES:
        value = OmegaConf.select(cfg, key)
        if value is not None and not 0 < value <= 1:
            raise UserError(f"{where}: {key}={value} is no share of a set: above 0, up to 1 (all)")


def set_length(cfg: DictConfig, images: int) -> None:
    """Where a config counts in epochs, over so many training images, put their iterations, rounded,
    in place of `train.max_iter`."""
    if epochs := cfg.train.get("epochs"):
        cfg.train.max_iter = max(1, round(epochs * images / batch(cfg)[0]))


def write_out_count(words: DictConfig, encoder: nn.Module | None) -> None:
    """Put the number in place of a word for it: the same network is the same run.

    Args:
        words: of `encoder`, the `ViT` that they make, or anything else.
    """
    by_words = words.get("propagation") is not None  # else by detectron2's indexes of blocks
    if isinstance(encoder, ViT) and by_words and words.get("count", 0) in (None, "all"):
        words.count = block_count(strategy(words.propagation, encoder.spec), words.count)


def fitted(cfg: DictConfig, data: "Data") -> DictConfig:
    """A copy of a config that reads these data: for as many iterations as its epochs of them are;
    if they are the user's own, images of any size, and boxes only where there are no masks."""
    cfg = copy.deepcopy(cfg)
    set_length(cfg, data.images[0])
    if data.name:
        take_any_size(cfg)
        if not data.has_masks:
            leave_out_masks(cfg)
    return cfg


def take_any_size(cfg: DictConfig) -> None:
    """Where a config reads images as they are, of a set of one size, make it resize them to
    `dataloader.image_size` on the longer side, which the backbone pads to a square; and let none
    stand on its head in training, as those of the mini set may."""
    side = "${dataloader.image_size}"
    for mapper in (cfg.dataloader.train.mapper, cfg.dataloader.test.mapper):
        if not any(_class(words).startswith("Resize") for words in mapper.augmentations):
            upright = [words for words in mapper.augmentations if not words.get("vertical")]
            resize = LazyCall(ResizeShortestEdge)(short_edge_length=side, max_size=side)
            mapper.augmentations = [*upright, resize]


def leave_out_masks(cfg: DictConfig) -> None:
    """Make Mask R-CNN, or its cascade, one of boxes only, Faster R-CNN; RetinaNet is."""
    cfg.dataloader.train.mapper.update(use_instance_mask=False, recompute_boxes=False)
    for part in ("mask_in_features", "mask_pooler", "mask_head"):
        cfg.model.get("roi_heads", {}).pop(part, None)


def sizing(cfg: DictConfig, sides: tuple[int, int]) -> str:
    """What a config does to the size of images, in words.

    Args:
        sides: the shortest and the longest of the images, in pixels.
    """
    side = cfg.dataloader.image_size
    words = "as they are" if sides == (side, side) else f"resized to {side} px on the longer side"
    if any(_class(a) == "ResizeScale" for a in cfg.dataloader.train.mapper.augmentations):
        words += f", in training by large-scale jitter into a crop of {side} x {side} px"
    return words


def _class(words: DictConfig) -> str:
    """Name of the class that a config makes one of."""
    target = words["_target_"]
    return target.rpartition(".")[2] if isinstance(target, str) else target.__name__


def check(cfg: DictConfig, where: str) -> nn.Module:
    """Find what does not fit before anything runs: ranges, and a model built without memory, with
    its groups of parameters.

    Returns:
        That model, on the meta device.

    Raises:
        UserError: naming `where`, the key and what is allowed.
    """
    test_time.check(cfg.test)
    side, square = cfg.dataloader.image_size, cfg.model.backbone.get("square_pad", 0)
    if 0 < square < side:
        raise UserError(
            f"{where}: images of dataloader.image_size={side} do not fit into the "
            f"model.backbone.square_pad={square} that they are padded to"
        )
    if keeps_features(cfg) and not square:
        raise UserError(
            f"{where}: dataloader.train.views with train.tuning={FROZEN} keeps features, which are "
            "of images padded alike: set model.backbone.square_pad"
        )
    return check_training(cfg, where)


def check_training(cfg: DictConfig, where: str) -> nn.Module:
    """As `check`, of what detection and pre-training configs have in common."""
    for key, least in _AT_LEAST.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and value < least:
            raise UserError(f"{where}: {key}={value} is too small: at least {least}")
    check_shares(cfg, where)
    # A run's config.yaml of before there were these words can be evaluated.
    parallel, ema = cfg.train.get("parallel", "ddp"), cfg.train.get("ema", 0.0)
    if parallel not in PARALLEL:
        raise unknown("train.parallel", str(parallel), PARALLEL)
    if not 0 <= ema < 1:
        raise UserError(f"{where}: train.ema={ema} is no decay: from 0 (none) to below 1")
    total, micro = batch(cfg)
    if total % micro:
        raise UserError(
            f"{where}: dataloader.train.micro_batch_size={micro} does not divide "
            f"total_batch_size={total}"
        )
    if micro % group(cfg):
        raise UserError(
            f"{where}: dataloader.train.micro_batch_size={micro} is no multiple of "
            f"loss_batch_size={group(cfg)}, which is a part of the recipe"
        )
    try:
        model = build_on_meta(cfg.model)
        tune(model, cfg)
        param_groups(model, cfg.optimizer.lr, cfg.optimizer.weight_decay, **cfg.param_groups)
        return model
    except Exception as error:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{where}: {message}") from error


def tuning(cfg: DictConfig) -> str:
    """What of the encoder trains, see `tuning.freeze`."""
    return cfg.train.get("tuning", FULL)  # a run's config.yaml of before there was this word


def tune(model: nn.Module, cfg: DictConfig) -> None:
    """Freeze what the config says of a model that it describes.

    Raises:
        UserError: as of `tuning.freeze`; the model is no detector, whose encoder it is.
    """
    if tuning(cfg) == FULL:
        return
    if not hasattr(model, "backbone"):
        raise UserError(f"train.tuning={tuning(cfg)} is for detectors")
    freeze(encoder_of(model)[1], tuning(cfg))


def keeps_features(cfg: DictConfig) -> bool:
    """Whether the encoder's output is computed once and kept, see `training.features`: where it is
    frozen and sees fixed views."""
    return tuning(cfg) == FROZEN and cfg.dataloader.train.get("views", 0) > 0


def batch(cfg: DictConfig) -> tuple[int, int]:
    """Images of one optimizer step, and of one forward and backward pass."""
    train = cfg.dataloader.train
    return train.total_batch_size, min(train.micro_batch_size, train.total_batch_size)


def group(cfg: DictConfig) -> int:
    """Images whose losses are averaged over together, and which share random numbers: a part of
    the recipe, of which a pass takes as many as the device holds. Of no more images than a pass."""
    micro = batch(cfg)[1]
    # A run's config.yaml of before there was this word.
    return min(cfg.dataloader.train.get("loss_batch_size", micro), micro)


def check_processes(cfg: DictConfig, count: int) -> None:
    """Raises UserError if a step has fewer passes than there are processes, or under FSDP, where
    each pass gathers weights from all of them, not as many for each."""
    total, micro = batch(cfg)
    if cfg.train.parallel == "fsdp" and total // micro % count:
        raise UserError(
            f"GPUS={count} does not divide a step's {total // micro} passes of {micro}, as "
            "train.parallel=fsdp needs: give a divisor, or train.parallel=ddp"
        )
    if count > total // micro:
        raise UserError(
            f"GPUS={count} is too many: a step's {total} images are {total // micro} passes of "
            f"{micro}. Give fewer, or a lower dataloader.train.micro_batch_size"
        )


def encoder_size(cfg: DictConfig) -> str:
    """The named size of the config's encoder, e.g. "vit-b" or "swin-l"; "" if it has none."""
    encoder = cfg.model.get("backbone") or cfg.model.encoder
    if "size" in encoder:
        return encoder.size
    words = encoder.get("bottom_up", {})
    kind = words.get("_target_", "")
    kind = kind if isinstance(kind, str) else kind.__name__
    blocks = words.get("depth") or sum(words.get("depths", []))
    return _HIERARCHICAL.get((kind.rpartition(".")[2], words.get("embed_dim"), blocks), "")


def is_recipe(word: str) -> bool:
    """Whether `train.init_weights` asks for a pre-training of this suite."""
    return word.startswith(RECIPE)


def init_weights(cfg: DictConfig) -> Path | None:
    """The file of the encoder's initial weights, see `backbones.weights.catalog`; None: random, or
    pre-trained here.

    Raises:
        UserError: unknown, or not there: what to download and where to put it.
    """
    if is_recipe(cfg.train.init_weights):
        return None
    try:
        return catalog.find(cfg.train.init_weights, encoder_size(cfg))
    except (WeightsError, FileNotFoundError) as error:
        raise UserError(str(error)) from error


def build_on_meta(cfg_model: DictConfig) -> nn.Module:
    """The model that a config describes, on the meta device: shapes without memory."""
    with on_meta():
        return instantiate(cfg_model)


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
    unsaid = [key for key, value in _SINCE.items() if OmegaConf.select(cfg, key) == value]
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
    """Make the folder, and a file in it, and lock that.

    Raises:
        UserError: no permission, no space, or no locks.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{platform.node()}-{os.getpid()}"
        probe.write_bytes(b"\0" * 4096)
        try:
            with open(probe) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise UserError(
                f"no file can be locked in {folder} ({error.strerror}), which keeps two commands "
                "from training one run: mount it with locks (Lustre: -o flock), or give another "
                "with --runs"
            ) from error
        finally:
            probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror}. Give another with --runs"
        ) from error
