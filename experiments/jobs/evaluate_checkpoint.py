"""Evaluate a checkpoint that lies somewhere, outside of any study."""

import contextlib
import datetime
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from omegaconf import DictConfig
from rich.console import Console
from torch import nn

from backbones.weights import WeightsError, load_detector

from .. import records
from ..costs import environment
from ..data import catalog, progress
from ..data.annotations import Split
from ..errors import UserError
from ..evaluation.evaluate import PREDICTIONS, Result, evaluate, identity, of_kind, set_num_classes
from ..json_files import write_json
from ..recipe import checks, config, own_data
from ..recipe.identity import plain_config
from ..recipe.words import parse_overrides, set_words
from ..records import RESULT
from ..training import distributed
from .job import now

LAST = "last"  # link to the folder of the evaluation that was done or asked for last
_SHORT = {
    "val2017": "coco_2017_val",
    "train2017": "coco_2017_train",
    "test-dev2017": "coco_2017_test-dev",
}
# detectron2's names of splits that no config evaluates on.
_OTHERS = ("coco_2017_train", "coco_2017_test-dev", "lvis_v1_train")
_LINE_EVERY = 30.0  # seconds between reports where there is no terminal


def evaluate_checkpoint(
    config_file: Path | None,
    weights: Path,
    overrides: str,
    split: str,
    out: Path,
    console: Console,
) -> Path:
    """Score a detector on COCO val2017, or on another split.

    Called in all processes of the process group, if there is one. Interrupted, the same call goes
    on from the images that are done; done before, it takes no time.

    Args:
        config_file: training config; None: config.yaml beside the weights, as runs have it.
        weights: checkpoint of a whole detector, of detectron2 or this suite (.pth, .pkl, ...).
        split: as of `find_split`; "": what the config names.
        out: folder of evaluations.

    Returns:
        The folder in it of this one: the predictions, `RESULT`, and, but for a split without ground
        truth, a record as of a foreign result, which `analysis compare` takes. Its name is from
        config, weights and data.

    Raises:
        UserError: config, weights or data are missing or do not fit each other, or it is under way.
    """
    if comm.get_rank() > 0:
        console = Console(quiet=True)
    if not weights.is_file():
        raise UserError(f"no checkpoint at {weights}: give the file of a whole detector")
    if config_file is None:
        config_file = weights.parent / "config.yaml"
        if not config_file.is_file():
            raise UserError(
                f"no config.yaml beside {weights}: say what it is the weights of with CONFIG=, "
                "e.g. configs/coco/mask_rcnn_vit_b.py"
            )
    cfg = config.load(config_file)
    set_words(cfg, parse_overrides(overrides), "OVERRIDES")
    found = find_split(split or cfg.dataloader.test.dataset)
    categories, notes = distributed.of_main(lambda: _checked(found))
    set_num_classes(cfg, categories)
    if "," in split:  # the user's own
        own_data.take_any_size(cfg)
        if notes:
            console.print(f"note: {notes}", highlight=False)
    checks.check(cfg, str(config_file))
    model = instantiate(cfg.model).to(distributed.device())
    try:
        load_detector(model, weights, show=lambda account: console.print(str(account)))
    except WeightsError as error:
        raise UserError(str(error)) from error
    mark = identity(model, cfg, found)[:8]
    folder = out / f"{config_file.stem}-{weights.absolute().parent.name}-{weights.stem}-{mark}"
    checks.check_writable(folder)
    busy = f"another command is at this evaluation, {folder}: wait for it"
    with distributed.alone(folder / ".lock", busy):
        if distributed.of_main(lambda: (folder / RESULT).is_file()):
            console.print("it was evaluated before: remove its folder to do it again")
        else:
            with _shown(console) as report:
                result = evaluate(model, cfg, found, folder, report)
            if comm.is_main_process():
                _write(folder, result, model, cfg, found, config_file, weights, overrides)
        distributed.wait()
    if comm.is_main_process():
        _link(out / LAST, folder)
    figures = json.loads((folder / RESULT).read_text())
    told = [f"{kind} AP {figures[kind]['AP']:.1f}" for kind in ("box", "mask") if figures[kind]]
    told = ", ".join(told) or "no ground truth, no AP"
    console.print(f"{told} on {figures['images']} images: {folder}", highlight=False)
    return folder


def find_split(name: str) -> Split:
    """A split by name, looked for where detectron2 does.

    Args:
        name: "val2017", "train2017" or "test-dev2017" of COCO; detectron2's names of these, and of
            LVIS v1's; a name that configs have (`catalog.test_split`); "annotations.json,images/".

    Raises:
        UserError: another name, or the data are not there.
    """
    full = _SHORT.get(name, name)
    if full not in _OTHERS:
        return catalog.test_split(full)
    found = MetadataCatalog.get(full)
    json_file, image_root = (os.path.abspath(path) for path in (found.json_file, found.image_root))
    for path in (json_file, image_root):
        if not os.path.exists(path):
            raise UserError(
                f"no {name}: {path} is missing. Set DETECTRON2_DATASETS to the folder that holds "
                "coco/ or lvis/"
            )
    return Split(json_file, image_root, found.evaluator_type)


def _checked(split: Split) -> tuple[int, str]:
    """How many categories it has; and, if there is ground truth, what is odd in it."""
    if Path(split.json_file).name.startswith("image_info_"):  # COCO's, of test sets
        return len(split.read()["categories"]), ""
    found = catalog.read_split(split)
    return len(found.categories), found.notes


@contextlib.contextmanager
def _shown(console: Console) -> Iterator[Callable[[int, int], None]]:
    """How far it is, with images/s and time left: a bar, or lines where there is no terminal."""
    if console.is_terminal and not console.quiet:
        with progress.bar("images", console) as bar:
            task = bar.add_task("", total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    start, before, last, told = 0.0, -1, 0.0, -1

    def line(done: int, total: int) -> None:
        nonlocal start, before, last, told
        now = time.monotonic()
        if before < 0:
            start, before = now, done
        elif done == told or (done < total and now - last < _LINE_EVERY):
            return
        last, told = now, done
        text = f"{done}/{total} images"
        if done > before:
            speed = (done - before) / (now - start)
            left = datetime.timedelta(seconds=round((total - done) / speed))
            text += f"  {speed:.2f} images/s  {left} left"
        console.print(text, highlight=False)

    yield line


def _write(
    folder: Path,
    result: Result,
    model: nn.Module,
    cfg: DictConfig,
    split: Split,
    config_file: Path,
    weights: Path,
    overrides: str,
) -> None:
    """The record, and `RESULT` last; what COCO's server takes if there is no ground truth."""
    if result.box:
        known = dict(
            study="",
            variant=weights.stem,
            scale="",
            size=config.encoder_size(cfg),
            seed=0,
            fingerprint=records.FOREIGN,
            box=result.box,
            mask=result.mask,
            reach=result.reach,
            predictions=PREDICTIONS,
            params=sum(p.numel() for p in model.parameters()),
            evaluate_seconds=result.seconds,
            data=dict(kind=split.kind, val=split.json_file),
            config=plain_config(cfg),
        )
        empty = dict.fromkeys(records.Record.__dataclass_fields__)
        records.write(folder, records.Record(**empty | known))
    else:
        name = Path(split.json_file).stem.removeprefix("image_info_")
        for kind, server in (("box", "bbox"), ("mask", "segm")):
            detections = of_kind(folder / PREDICTIONS, kind)
            if all(("bbox" if kind == "box" else "segmentation") in d for d in detections):
                path = folder / f"detections_{name}_{weights.stem}-{server}_results.json"
                path.write_text(json.dumps(detections))
    with open(weights, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    write_json(
        folder / RESULT,
        dict(
            config=str(config_file),
            weights=str(weights.absolute()),
            weights_sha256=digest,
            overrides=overrides,
            data=dict(kind=split.kind, val=split.json_file, images=split.image_root),
            box=result.box,
            mask=result.mask,
            images=result.images,
            seconds=result.seconds,
            processes=comm.get_world_size(),
            device=environment.device_name(),
            versions=environment.versions(),
            git_commit=environment.git_commit(),
            finished=now(),
        ),
    )


def _link(path: Path, folder: Path) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.symlink_to(folder.name)
    os.replace(scratch, path)
