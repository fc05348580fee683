"""From what is asked for to one resolved config."""

import copy

from omegaconf import DictConfig, OmegaConf
from torch import nn

from backbones import ViT
from backbones.propagation import block_count, strategy
from backbones.weights import WeightsError, catalog

from ..data.subsets import Shares
from ..errors import UserError
from ..scales import SCALES
from ..studies import Study, Variant, Words
from .checks import check, check_shares
from .config import (
    SHARES,
    base_path,
    check_scale,
    encoder_size,
    is_recipe,
    load,
    set_length,
    shares,
)
from .words import check_overrides, parse_overrides, set_words, split_overrides


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
    for key in ("train.epochs", *SHARES):
        if (value := OmegaConf.select(cfg, key)) is not None:
            OmegaConf.update(cfg, key, float(value))  # 12 or 12.0, it is the same run
    if "epochs" in cfg.train:
        if "train.max_iter" in {**study.words, **row, **overrides}:
            cfg.train.epochs = 0.0
        set_length(cfg, round(shares(cfg).train * SCALES[scale].images[study.dataset][0]))
    return cfg


def write_out_count(words: DictConfig, encoder: nn.Module | None) -> None:
    """Put the number in place of a word for it: the same network is the same run.

    Args:
        words: of `encoder`, the `ViT` that they make, or anything else.
    """
    by_words = words.get("propagation") is not None  # else by detectron2's indexes of blocks
    if isinstance(encoder, ViT) and by_words and words.get("count", 0) in (None, "all"):
        words.count = block_count(strategy(words.propagation, encoder.spec), words.count)


def data_shares(scale: str, kind: str, overrides: str) -> Shares:
    """How much of its data a scale reads, with the user's words.

    Args:
        kind: "coco" or "lvis".

    Raises:
        UserError: unknown scale, or words that do not fit.
    """
    check_scale(scale)
    cfg = load(base_path(scale, SCALES[scale].size, dataset="lvis" if kind == "lvis" else "coco"))
    words, _ = split_overrides(parse_overrides(overrides))
    set_words(cfg, words, "OVERRIDES")
    check_shares(cfg, "OVERRIDES")
    return shares(cfg)
