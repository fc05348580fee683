"""Evaluate a checkpoint that lies somewhere, outside of any study."""

import hashlib
from pathlib import Path

import torch
from detectron2.config import instantiate
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from backbones.weights import WeightsError, load_detector

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
        weights: checkpoint of a whole detector, of detectron2 or this suite (.pth, .pkl, ...).
        val: "annotations.json,images/" or None.
        folder: receives the predictions and result.json, with a mark of data and overrides behind
            its name.

    Raises:
        UserError: config, weights or data are missing or do not fit each other.
    """
    if not weights.exists():
        raise UserError(f"no checkpoint at {weights}: give the file of a whole detector")
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
    try:
        load_detector(model, weights, show=lambda account: console.print(str(account)))
    except WeightsError as error:
        raise UserError(str(error)) from error
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
