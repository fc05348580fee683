"""Box and mask AP of a detector, by COCO's or LVIS's rules."""

import contextlib
import hashlib
import io
import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import get_detection_dataset_dicts
from detectron2.evaluation import inference_context
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm
from lvis import LVIS, LVISEval, LVISResults
from omegaconf import DictConfig
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ..data import annotations
from ..data.annotations import Split
from ..errors import UserError
from ..recipe import test_time
from ..recipe.identity import plain_config, without_keys
from ..records import COCO_FIGURES, LVIS_FIGURES
from ..training import distributed
from . import average_precision, matches, reach
from .detections import read_results
from .parts import Parts
from .reach import Reach

PREDICTIONS = "coco_instances_results.json"  # detectron2's name
_PARTS = "detections"  # folder of what is done of an evaluation under way
_TASKS = {"box": "bbox", "mask": "segm"}

_LOGGER = logging.getLogger("detectron2")  # whose lines are kept in a run's log
logging.getLogger("lvis").setLevel(logging.ERROR)  # it warns of results that come from a program


@dataclass(frozen=True)
class Result:
    """The figures of the split's kind (0..100; None where there is no such object) for boxes and
    masks; none for masks if the detector finds none, none at all if the split has no objects to
    compare with (COCO's test sets)."""

    box: dict[str, float | None]
    mask: dict[str, float | None]
    images: int
    seconds: float  # of detecting, over all resumes, and of scoring; by the clock
    reach: Reach | None = None  # None: the split has no cue


def figures(truth: Path, predictions: Path, kind: str, rules: str) -> dict[str, float | None]:
    """`COCO_FIGURES` or `LVIS_FIGURES` of a file of detections, 0..100; None where the set has no
    such object.

    Its matches are kept beside it. What they refuse (a detection that occurs twice, say) is scored
    by pycocotools or lvis, which do not mind.

    Args:
        kind: "box" or "mask".
        rules: "coco" or "lvis".
    """
    try:
        return _FROM_MATCHES[rules](matches.of_file(truth, predictions, kind, rules))
    except UserError as error:
        _LOGGER.warning("%s: scored by the reference, it will have no intervals", error)
        reference = pycocotools_figures if rules == "coco" else lvis_figures
        return reference(truth, predictions, kind)


_FROM_MATCHES = {"coco": average_precision.coco_figures, "lvis": average_precision.lvis_figures}


def _figures_of_parts(
    truth: Path,
    predictions: Path,
    kinds: Sequence[str],
    rules: str,
    parts: Callable[[], Iterable[list[dict]]],
) -> dict[str, dict[str, float | None]]:
    """`figures` of each kind, of a file that is at hand in parts (`matches.of_parts`)."""
    try:
        found = matches.of_parts(truth, predictions, kinds, rules, parts)
    except UserError:  # which `figures` tells
        return {kind: figures(truth, predictions, kind, rules) for kind in kinds}
    return {kind: _FROM_MATCHES[rules](of_kind) for kind, of_kind in found.items()}


def pycocotools_figures(truth: Path, predictions: Path, kind: str) -> dict[str, float | None]:
    """`COCO_FIGURES` as of `figures`, by the reference; there must be detections."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = _numbered(truth, "coco")
        coco.createIndex()
        scores = COCOeval(coco, coco.loadRes(of_kind(predictions, kind)), _TASKS[kind])
        scores.evaluate()
        scores.accumulate()
        scores.summarize()
    return _named(COCO_FIGURES, scores.stats)


def lvis_figures(truth: Path, predictions: Path, kind: str) -> dict[str, float | None]:
    """`LVIS_FIGURES` as of `figures`, by the reference; there must be detections."""
    lvis = _Lvis(_numbered(truth, "lvis"))
    scores = _LvisEval(lvis, LVISResults(lvis, of_kind(predictions, kind)), _TASKS[kind])
    scores.run()
    return _named(LVIS_FIGURES, [scores.results[figure] for figure in LVIS_FIGURES])


def _numbered(truth: Path, rules: str) -> dict:
    """What an annotation file holds, its annotations numbered from 1: to the references, a match to
    0 is none."""
    content = annotations.read(truth, rules)
    for number, annotation in enumerate(content["annotations"], 1):
        annotation["id"] = number
    return content


class _Lvis(LVIS):
    def _load_json(self, content: dict) -> dict:
        return content


class _LvisEval(LVISEval):
    def accumulate(self):
        np.float = float  # lvis 0.5.3 uses this alias, which numpy dropped
        try:
            super().accumulate()
        finally:
            del np.float


def of_kind(predictions: Path, kind: str) -> list[dict]:
    """Detections of that kind alone: where there is a box too, COCO takes a mask's size from it."""
    left_out = {"mask": "bbox", "box": "segmentation"}[kind]
    results = read_results(predictions)
    return [{k: v for k, v in result.items() if k != left_out} for result in results]


def _named(names: Sequence[str], values: Sequence[float]) -> dict[str, float | None]:
    values = [float(v) * 100 if v > -1 else None for v in values]
    return dict(zip(names, values, strict=True))


class _Images(Dataset):
    def __init__(self, dicts: list[dict], mapper: Callable):
        self.dicts, self.mapper = dicts, mapper

    def __len__(self) -> int:
        return len(self.dicts)

    def __getitem__(self, index: int) -> dict | UserError:
        try:
            return self.mapper(self.dicts[index])
        except UserError as error:  # raised in a worker, torch would wrap it in a traceback
            return error


def evaluate(
    model: nn.Module,
    cfg: DictConfig,
    split: Split,
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    examples: Callable[[list[dict]], Dataset] | None = None,
) -> Result:
    """Detect on every image of a split, keep the predictions in `folder`, and score them.

    Called in all processes of the process group, if there is one, they share the work: each image
    is detected on once, and in the batch that it would be in without them. What is done is kept in
    `folder`, which they all see; interrupted at any moment, the next call with the same weights,
    config and data goes on from there, with any number of processes.

    Args:
        model: whole detector, the same in all processes; left in the mode it was in.
        cfg: config, for `model`, `dataloader.test` and `test`.
        progress: called with images done and in all, first with those that were done before; of
            other processes' images it takes as many to be done as of this one's.
        examples: makes the detector's inputs from the split's dataset dicts, in their order; None:
            as `cfg.dataloader.test.mapper` does.

    Returns:
        The same in all processes.

    Raises:
        UserError: an image cannot be read.
    """
    name = split.register()
    with contextlib.redirect_stdout(io.StringIO()):
        dicts = get_detection_dataset_dicts(name, filter_empty=False)
    for image in dicts:  # LVIS's are a GB, and nothing here reads them
        image.pop("annotations", None)
    content = split.read()
    categories = sorted(category["id"] for category in content["categories"])
    objects, has_cue = content.get("annotations", ()), reach.has_cue(content)
    has_truth, has_masks = bool(objects), any("segmentation" in o for o in objects)
    del content, objects
    size = cfg.dataloader.test.batch_size
    batches = [range(len(dicts))[i : i + size] for i in range(0, len(dicts), size)]
    parts = Parts(folder / _PARTS, identity(model, cfg, split))
    if examples is None:
        images = _Images(dicts, instantiate(cfg.dataloader.test.mapper))
    else:
        images = examples(dicts)
    _detect(model, cfg, images, batches, categories, parts, progress)
    distributed.wait()
    progress(len(dicts), len(dicts))

    def score() -> Result:
        ids = [[dicts[i]["image_id"] for i in batch] for batch in batches]
        seconds = parts.merge(ids, folder / PREDICTIONS)
        start = time.perf_counter()
        masks = has_masks and getattr(getattr(model, "roi_heads", None), "mask_on", False)
        kinds = ["box", "mask"][: 1 + masks] if has_truth else []
        truth, found = Path(split.json_file), folder / PREDICTIONS
        scored = _figures_of_parts(truth, found, kinds, split.kind, lambda: parts.read(ids))
        of_cue = reach.of_files(truth, found) if has_cue else None
        seconds += time.perf_counter() - start
        parts.remove()
        return Result(scored.get("box", {}), scored.get("mask", {}), len(dicts), seconds, of_cue)

    return distributed.of_main(score)


def identity(model: nn.Module, cfg: DictConfig, split: Split) -> str:
    """Digest of all that the detections depend on: weights, config and data."""
    plain = without_keys(plain_config(cfg), ("dataloader.test.num_workers",))
    words = [plain["model"], plain["test"], plain["dataloader"]["test"], str(split)]
    digest = hashlib.sha256(json.dumps(words, sort_keys=True).encode())
    with open(split.json_file, "rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _detect(
    model: nn.Module,
    cfg: DictConfig,
    examples: Dataset,
    batches: list[range],
    categories: list[int],
    parts: Parts,
    progress: Callable[[int, int], None],
) -> None:
    """This process's share of the batches that are not done yet."""
    rank, processes = comm.get_rank(), comm.get_world_size()
    done = distributed.of_main(lambda: set(parts.lines()))
    mine = [number for number in range(len(batches)) if number not in done][rank::processes]
    test = cfg.dataloader.test
    loader = DataLoader(
        examples,
        batch_sampler=[batches[number] for number in mine],
        num_workers=min(test.num_workers, distributed.cores()),
        collate_fn=list,
    )
    total, images = sum(map(len, batches)), sum(len(batches[number]) for number in done)
    _LOGGER.info("detecting on %d images, on %d of them it was done before", total, images)
    progress(images, total)
    start = time.perf_counter()
    # In float32, as detectron2 does: bfloat16 scores have ties, whose order decides AP.
    with (
        test_time.applied(model, cfg.test) as detector,
        inference_context(detector),
        torch.no_grad(),
        parts.append(rank) as write,
    ):
        for number, inputs in zip(mine, loader, strict=True):
            if unreadable := [image for image in inputs if isinstance(image, UserError)]:
                raise unreadable[0]
            found = []
            for image, output in zip(inputs, detector(inputs), strict=True):
                found += instances_to_coco_json(output["instances"].to("cpu"), image["image_id"])
            for detection in found:  # detectron2 counts categories from 0
                detection["category_id"] = categories[detection["category_id"]]
            now = time.perf_counter()
            write(
                dict(
                    batch=number,
                    images=[image["image_id"] for image in inputs],
                    seconds=(now - start) / processes,
                    detections=found,
                )
            )
            start = now
            images += len(inputs) * processes
            progress(min(images, total), total)


def set_num_classes(cfg: DictConfig, count: int) -> None:
    """Make the detector that `cfg.model` describes one of `count` categories."""
    (cfg.model.roi_heads if "roi_heads" in cfg.model else cfg.model).num_classes = count
