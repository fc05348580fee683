"""Box and mask AP of a detector, by COCO's or LVIS's rules."""

import contextlib
import io
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.config import instantiate
from detectron2.data import get_detection_dataset_dicts
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from lvis import LVIS, LVISEval, LVISResults
from omegaconf import DictConfig
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn
from torch.utils.data import DataLoader, Dataset

from . import average_precision, matches, test_time
from .data.catalog import Split
from .errors import UserError
from .records import COCO_FIGURES, LVIS_FIGURES

PREDICTIONS = "coco_instances_results.json"  # detectron2's name
_TASKS = {"box": "bbox", "mask": "segm"}

_LOGGER = logging.getLogger("detectron2")  # whose lines are kept in a run's log
logging.getLogger("lvis").setLevel(logging.ERROR)  # it warns of results that come from a program


@dataclass(frozen=True)
class Result:
    """The figures of the split's kind (0..100; None where there is no such object) for boxes and
    masks; none for masks if the detector finds none."""

    box: dict[str, float | None]
    mask: dict[str, float | None]
    seconds: float


class _Evaluator(COCOEvaluator):
    """detectron2's, scored from matches, which stay beside the predictions.

    It is for LVIS too: detectron2's evaluator of that treats predictions alike, up to the scoring.
    """

    def __init__(self, name: str, split: Split, tasks: tuple[str, ...], folder: Path):
        super().__init__(name, tasks, False, str(folder), use_fast_impl=False)
        self.split, self.folder = split, folder
        self.figures: dict[str, dict[str, float | None]] = {}

    def _eval_predictions(self, predictions, img_ids=None):
        ids = sorted(self._coco_api.getCatIds())  # detectron2 counts them from 0, in this order
        results = [result for image in predictions for result in image["instances"]]
        for result in results:
            result["category_id"] = ids[result["category_id"]]
        path = self.folder / PREDICTIONS
        path.write_text(json.dumps(results))
        truth = Path(self.split.json_file)
        for kind, task in _TASKS.items():
            if task in self._tasks:
                self.figures[kind] = figures(truth, path, kind, self.split.kind)


def figures(truth: Path, predictions: Path, kind: str, rules: str) -> dict[str, float | None]:
    """`COCO_FIGURES` or `LVIS_FIGURES` of a file of detections, 0..100; None where the set has no
    such object.

    Its matches are kept beside it. What they refuse (a detection that occurs twice, say) is scored
    by pycocotools or lvis, which do not mind.

    Args:
        kind: "box" or "mask".
        rules: "coco" or "lvis".
    """
    from_matches, reference = {
        "coco": (average_precision.coco_figures, pycocotools_figures),
        "lvis": (average_precision.lvis_figures, lvis_figures),
    }[rules]
    try:
        return from_matches(matches.of_file(truth, predictions, kind, rules))
    except UserError as error:
        _LOGGER.warning("%s: scored by the reference, it will have no intervals", error)
        return reference(truth, predictions, kind)


def pycocotools_figures(truth: Path, predictions: Path, kind: str) -> dict[str, float | None]:
    """`COCO_FIGURES` as of `figures`, by the reference; there must be detections."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        scores = COCOeval(coco, coco.loadRes(_results(predictions, kind)), _TASKS[kind])
        scores.evaluate()
        scores.accumulate()
        scores.summarize()
    return _named(COCO_FIGURES, scores.stats)


def lvis_figures(truth: Path, predictions: Path, kind: str) -> dict[str, float | None]:
    """`LVIS_FIGURES` as of `figures`, by the reference; there must be detections."""
    lvis = LVIS(str(truth))
    scores = _LvisEval(lvis, LVISResults(lvis, _results(predictions, kind)), _TASKS[kind])
    scores.run()
    return _named(LVIS_FIGURES, [scores.results[figure] for figure in LVIS_FIGURES])


class _LvisEval(LVISEval):
    def accumulate(self):
        np.float = float  # lvis 0.5.3 uses this alias, which numpy dropped
        try:
            super().accumulate()
        finally:
            del np.float


def _results(predictions: Path, kind: str) -> list[dict]:
    """Of that kind alone: where there is a box too, a mask's size would be taken from that."""
    left_out = {"mask": "bbox", "box": "segmentation"}[kind]
    results = json.loads(predictions.read_bytes())
    return [{k: v for k, v in result.items() if k != left_out} for result in results]


def _named(names: Sequence[str], values: Sequence[float]) -> dict[str, float | None]:
    values = [float(v) * 100 if v > -1 else None for v in values]
    return dict(zip(names, values, strict=True))


class _Images(Dataset):
    def __init__(self, dicts: list[dict], mapper: Callable):
        self.dicts, self.mapper = dicts, mapper

    def __len__(self) -> int:
        return len(self.dicts)

    def __getitem__(self, index: int) -> dict:
        return self.mapper(self.dicts[index])


def evaluate(
    model: nn.Module,
    cfg: DictConfig,
    split: Split,
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Result:
    """Detect on every image of a split, keep the predictions in `folder`, and score them.

    Args:
        model: detector; left in the mode it was in.
        cfg: config, for `dataloader.test` and `test`.
        progress: called with batches done and in all.
    """
    start = time.perf_counter()
    test = cfg.dataloader.test
    name = split.register()
    with contextlib.redirect_stdout(io.StringIO()):
        dicts = get_detection_dataset_dicts(name, filter_empty=False)
    loader = DataLoader(
        _Images(dicts, instantiate(test.mapper)),
        batch_size=test.batch_size,
        num_workers=test.num_workers,
        collate_fn=list,
    )
    masks = getattr(getattr(model, "roi_heads", None), "mask_on", False)
    tasks = ("bbox", "segm") if masks else ("bbox",)
    evaluator = _Evaluator(name, split, tasks, folder)
    done = iter(range(1, len(loader) + 1))
    # In float32, as detectron2 does: bfloat16 scores have ties, whose order decides AP.
    with test_time.applied(model, cfg.test) as detector:
        inference_on_dataset(
            detector,
            loader,
            evaluator,
            callbacks=dict(after_inference=lambda: progress(next(done), len(loader))),
        )
    os.remove(folder / "instances_predictions.pth")  # the same as PREDICTIONS, another format
    return Result(
        box=evaluator.figures["box"],
        mask=evaluator.figures.get("mask", {}),
        seconds=time.perf_counter() - start,
    )


def set_num_classes(cfg: DictConfig, count: int) -> None:
    """Make the detector that `cfg.model` describes one of `count` categories."""
    (cfg.model.roi_heads if "roi_heads" in cfg.model else cfg.model).num_classes = count
