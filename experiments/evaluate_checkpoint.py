"""Evaluate a checkpoint that lies somewhere, outside of any study."""

import hashlib
import pickle
from pathlib import Path

import torch
from detectron2.config import instantiate
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from . import config
from .data import catalog
from .errors import UserError
from .evaluate import Result, evaluate, set_num_classes
from .records import write_json


def evaluate_checkpoint(
    config_file: Path,
    weights: Path,
    overrides: str,
    val: str | None,
    folder: Path,
    console: Console,
) -> Result:
    """Score a detector on COCO val2017, the mini set's, or the user's own split.

    Args:
        config_file: training config; names the data set where `val` is None.
        weights: detectron2 checkpoint of the whole detector.
        val: "annotations.json,images/" or None.
        folder: receives the predictions and result.json, with a mark of data and overrides behind
            its name.

    Raises:
        UserError: config, weights or data are missing or do not fit each other.
    """
    cfg = config.load(config_file)
    config.set_words(cfg, config.parse_overrides(overrides), "OVERRIDES")
    split = catalog.parse_split(val) if val else catalog.test_split(cfg.dataloader.test.dataset)
    set_num_classes(cfg, len(catalog.read_split(split).categories))
    config.check(cfg, str(config_file))
    # One folder per data set and overrides.
    mark = hashlib.sha256(f"{split} {overrides}".encode()).hexdigest()[:8]
    folder = folder.with_name(f"{folder.name}-{mark}")
    config.check_writable(folder)
    model = instantiate(cfg.model).to("cuda" if torch.cuda.is_available() else "cpu")
    load_detector(model, weights)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("evaluating")
        result = evaluate(
            model,
            cfg,
            split,
            folder,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    write_json(
        folder / "result.json",
        dict(
            config=str(config_file),
            weights=str(weights),
            overrides=overrides,
            data=split.json_file,
            box=result.box,
            mask=result.mask,
        ),
    )
    console.print(f"{'':5}" + "".join(f"{figure:>7}" for figure in result.box))
    for kind, figures in (("box", result.box), ("mask", result.mask)):
        cells = ("" if value is None else f"{value:.1f}" for value in figures.values())
        if figures:
            console.print(f"{kind:5}" + "".join(f"{cell:>7}" for cell in cells))
    console.print(f"predictions and figures: {folder}")
    return result


def load_detector(model: nn.Module, weights: Path) -> None:
    """Load a whole detector's checkpoint, strictly.

    Raises:
        UserError: the file is missing or unreadable, or its keys or shapes do not fit the model.
    """
    if not weights.is_file():
        raise UserError(f"no checkpoint at {weights}: give the .pth of a whole detector")
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(
            f"cannot read {weights} as a checkpoint: {str(error).splitlines()[0]}"
        ) from error
    state = state.get("model", state) if isinstance(state, dict) else {}
    # detectron2 writes these constants into some checkpoints; its models no longer keep them.
    state = {k: v for k, v in state.items() if k not in ("pixel_mean", "pixel_std")}
    own = model.state_dict()
    for what, keys in (
        ("lacks", [k for k in own if k not in state]),
        ("has unknown", [k for k in state if k not in own]),
        ("has in another shape", [k for k in own if k in state and own[k].shape != state[k].shape]),
    ):
        if keys:
            more = f" and {len(keys) - 2} more" if len(keys) > 2 else ""
            raise UserError(
                f"{weights} does not fit the config: it {what} {', '.join(keys[:2])}{more}. "
                "A run's own config.yaml always fits its checkpoints"
            )
    model.load_state_dict(state)
