"""What does not fit, found before anything runs."""

import fcntl
import os
import platform
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from torch import nn

from ..errors import UserError, unknown
from . import test_time
from .config import SHARES, batch, build_on_meta, group, keeps_features, tune
from .optim import param_groups
from .tuning import FROZEN

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
PARALLEL = ("ddp", "fsdp")


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


def check_shares(cfg: DictConfig, where: str) -> None:
    """Raises UserError if a share is none."""
    for key in SHARES:
        value = OmegaConf.select(cfg, key)
        if value is not None and not 0 < value <= 1:
            raise UserError(f"{where}: {key}={value} is no share of a set: above 0, up to 1 (all)")


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
