"""Learning rate and weight decay of every layer of a config's detector."""

import re
from collections.abc import Sequence

from omegaconf import DictConfig
from rich.console import Console
from tabulate import tabulate
from torch import nn

from backbones.weights import encoder_of
from backbones.weights.account import group

from . import checks, config
from .optim import param_groups
from .tuning import FULL

# Layers of encoders, and how they are called; of all else, as in the account of loading.
_LAYERS = (
    (r"\.layers\.(\d+)\.blocks\.(\d+)\.", r"stage \1 block \2"),
    (r"\.layers\.(\d+)\.downsample\.", r"stage \1 downsampling"),
    (r"\.blocks\.(\d+)\.residual\.", r"block \1 residual module"),
    (r"\.blocks\.(\d+)\.", r"block \1"),
    (r"\.(norm\d|scale\d_norm)\.", "norms of the stages' maps"),
)


def rows(cfg: DictConfig, model: nn.Module) -> list[tuple[str, float, float, int, int]]:
    """(layer, learning rate, weight decay, tensors, parameters) of what trains, from the image to
    the heads.

    Args:
        model: the config's, which may be on the meta device.
    """
    groups = param_groups(model, cfg.optimizer.lr, cfg.optimizer.weight_decay, **cfg.param_groups)
    of = {p: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    encoder, _ = encoder_of(model)
    found: dict[tuple[bool, str, float, float], list[int]] = {}
    for name, parameter in model.named_parameters():
        if parameter in of:
            key = (not name.startswith(f"{encoder}."), _layer(name), *of[parameter])
            found.setdefault(key, []).append(parameter.numel())
    # FPN lists its own layers before the encoder's.
    ordered = sorted(found.items(), key=lambda item: item[0][0])
    return [(*key[1:], len(sizes), sum(sizes)) for key, sizes in ordered]


def _layer(name: str) -> str:
    for pattern, layer in _LAYERS:
        if match := re.search(pattern, name):
            return match.expand(layer)
    return group(name)


def show(cfg: DictConfig, title: str, console: Console) -> None:
    """Print `rows`, and the learning rate's factor of each.

    Raises:
        UserError: as of `checks.check`.
    """
    lr = cfg.optimizer.lr
    model = checks.check(cfg, title)
    found = rows(cfg, model)
    cells: list[Sequence] = [
        (layer, f"{rate:.3g}", f"{rate / lr:.3g}", f"{decay:g}", tensors, f"{parameters:,}")
        for layer, rate, decay, tensors, parameters in found
    ]
    cells.append(
        ("all", "", "", "", sum(row[3] for row in found), f"{sum(row[4] for row in found):,}")
    )
    headers = ("layer", "lr", "of base", "weight decay", "tensors", "parameters")
    without = ", ".join(cfg.param_groups.no_weight_decay) or "nothing"
    console.print(
        f"{title}: lr {lr:g}, layer_decay {cfg.param_groups.layer_decay:g}, weight_decay "
        f"{cfg.optimizer.weight_decay:g} (0 for {without})",
        highlight=False,
    )
    table = tabulate(
        cells, headers, "simple", colalign=("left", *["right"] * 5), disable_numparse=True
    )
    console.print(table, highlight=False)
    if config.tuning(cfg) != FULL:
        frozen = sum(p.numel() for p in encoder_of(model)[1].parameters() if not p.requires_grad)
        console.print(
            f"train.tuning {config.tuning(cfg)}: {frozen:,} parameters of the encoder stay as they "
            "are",
            highlight=False,
        )
