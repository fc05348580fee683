"""A training config: found, read, what it says, and the model that it describes."""

from collections.abc import Sequence
from pathlib import Path

from detectron2.config import LazyConfig, instantiate
from omegaconf import DictConfig
from torch import nn

from backbones.meta import on_meta
from backbones.weights import WeightsError, catalog, encoder_of

from .. import CONFIGS
from ..data.subsets import Shares
from ..errors import UserError, unknown
from ..scales import SCALES
from .tuning import FROZEN, FULL, freeze

PRETRAINING = CONFIGS / "pretraining"
RECIPE = "recipe:"  # in train.init_weights: pre-trained here, by a recipe of configs/pretraining
PRETRAINING_PARTS = ("model", "dataloader", "optimizer", "param_groups", "schedule", "train")
_PARTS = (*PRETRAINING_PARTS, "test")
_DETECTORS = ("cascade_mask_rcnn", "mask_rcnn", "probe", "retinanet")
SHARES = ("dataloader.train.share", "dataloader.test.share")
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


def class_name(words: DictConfig) -> str:
    """Name of the class that a config makes one of."""
    target = words["_target_"]
    return target.rpartition(".")[2] if isinstance(target, str) else target.__name__


def shares(cfg: DictConfig) -> Shares:
    """How much of its data a config reads; all, if it does not say."""
    train, test = cfg.dataloader.train, cfg.dataloader.test
    return Shares(
        train.get("share", 1.0), test.get("share", 1.0), cfg.dataloader.get("share_seed", 0)
    )


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


def set_length(cfg: DictConfig, images: int) -> None:
    """Where a config counts in epochs, over so many training images, put their iterations, rounded,
    in place of `train.max_iter`."""
    if epochs := cfg.train.get("epochs"):
        cfg.train.max_iter = max(1, round(epochs * images / batch(cfg)[0]))


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


def encoder_size(cfg: DictConfig) -> str:
    """The named size of the config's encoder, e.g. "vit-b" or "swin-l"; "" if it has none."""
    encoder = cfg.model.get("backbone") or cfg.model.encoder
    if "size" in encoder:
        return encoder.size
    if "bottom_up" not in encoder:
        return ""
    words = encoder.bottom_up
    blocks = words.get("depth") or sum(words.get("depths", []))
    return _HIERARCHICAL.get((class_name(words), words.get("embed_dim"), blocks), "")


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
