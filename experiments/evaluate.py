"""Box and mask AP of a detector: COCO's figures from matches, LVIS's by its own package."""

import contextlib
import io
import json
import logging
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.config import instantiate
from detectron2.data import get_detection_dataset_dicts
from detectron2.evaluation import COCOEvaluator, LVISEvaluator, inference_on_dataset
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
LVIS_DETECTIONS = 300  # per image, those that LVIS scores
# COCO's ranges of an object's area, which are LVIS's too.
_AREAS = {"s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}

_LOGGER = logging.getLogger("detectron2")  # whose lines are kept in a run's log
logging.getLogger("lvis").setLevel(logging.ERROR)  # it warns of results that come from a program


@dataclass(frozen=True)
class Result:
    """The figures of the split's kind (0..100; None where there is no such object) for boxes and
    masks; none for masks if the detector finds none."""

    box: dict[str, float | None]
    mask: dict[str, float | None]
    seconds: float


class _CocoEvaluator(COCOEvaluator):
    """detectron2's, scored from matches, which stay beside the predictions."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.figures: dict[str, dict[str, float | None]] = {}

    def _eval_predictions(self, predictions, img_ids=None):
        numbers = self._metadata.thing_dataset_id_to_contiguous_id
        ids = {contiguous: number for number, contiguous in numbers.items()}
        results = [result for image in predictions for result in image["instances"]]
        for result in results:
            result["category_id"] = ids[result["category_id"]]
        path = Path(self._output_dir) / PREDICTIONS
        path.write_text(json.dumps(results))
        for task, kind in (("bbox", "box"), ("segm", "mask")):
            if task in self._tasks:
                self.figures[task] = coco_figures(Path(self._metadata.json_file), path, kind)


def coco_figures(truth: Path, predictions: Path, kind: str) -> dict[str, float | None]:
    """`COCO_FIGURES` of a file of detections, 0..100; None where the set has no such object.

    Its matches are kept beside it. What they refuse (a detection that occurs twice, say) is scored
    by pycocotools, which does not mind.

    Args:
        kind: "box" or "mask".
    """
    try:
        return average_precision.coco_figures(matches.of_file(truth, predictions, kind))
    except UserError as error:
        _LOGGER.warning("%s: scored by pycocotools, it will have no intervals", error)
        return pycocotools_figures(truth, predictions, kind)


def pycocotools_figures(truth: Path, predictions: Path, kind: str) -> dict[str, float | None]:
    """As `coco_figures`, by the reference; there must be detections."""
    # Of those with a box pycocotools would take a mask's size from that.
    left_out = {"mask": "bbox", "box": "segmentation"}[kind]
    results = json.loads(predictions.read_bytes())
    results = [{k: v for k, v in result.items() if k != left_out} for result in results]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        scores = COCOeval(coco, coco.loadRes(results), {"mask": "segm", "box": "bbox"}[kind])
        scores.evaluate()
        scores.accumulate()
        scores.summarize()
    values = [float(v) * 100 if v > -1 else None for v in scores.stats]
    return dict(zip(COCO_FIGURES, values, strict=True))


class _LvisEvaluator(LVISEvaluator):
    """detectron2's, with None for figures of objects that are not there, and predictions where
    those of COCO are."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.figures: dict[str, dict[str, float | None]] = {}

    def _eval_predictions(self, predictions):
        results = [result for image in predictions for result in image["instances"]]
        for result in results:
            result["category_id"] += 1  # LVIS counts from 1
        (Path(self._output_dir) / PREDICTIONS).write_text(json.dumps(results))
        for task in self._tasks:
            self.figures[task] = lvis_figures(self._lvis_api, results, task)


class _LvisEval(LVISEval):
    def accumulate(self):
        np.float = float  # lvis 0.5.3 uses this alias, which numpy dropped
        try:
            super().accumulate()
        finally:
            del np.float


def _nothing_found(
    figure: str, objects: Iterable[dict], frequencies: dict[int, str]
) -> float | None:
    """0 if the set has an object that the figure is about.

    Args:
        frequencies: of categories.
    """
    low, high = _AREAS.get(figure[-1], (0, 1e10))
    groups = figure[-1] if figure[-1] in "rcf" else "rcf"
    some = any(
        low <= a["area"] <= high and frequencies[a["category_id"]] in groups for a in objects
    )
    return 0.0 if some else None


def lvis_figures(lvis: LVIS, results: list[dict], task: str) -> dict[str, float | None]:
    """`LVIS_FIGURES` of detections, 0..100; None where the set has no such object.

    Args:
        lvis: the set; scoring leaves notes in its annotations.
        results: detections in COCO's result format, of them `LVIS_DETECTIONS` per image count.
        task: "bbox" or "segm".
    """
    if not results:
        frequencies = {number: category["frequency"] for number, category in lvis.cats.items()}
        return {f: _nothing_found(f, lvis.anns.values(), frequencies) for f in LVIS_FIGURES}
    # Copies, as lvis writes into them; of those with a box it would take the size from that.
    left_out = "bbox" if task == "segm" else ""
    results = [{k: v for k, v in result.items() if k != left_out} for result in results]
    scores = _LvisEval(lvis, LVISResults(lvis, results, max_dets=LVIS_DETECTIONS), task)
    scores.run()
    values = scores.get_results()
    return {f: float(values[f]) * 100 if values[f] > -1 else None for f in LVIS_FIGURES}


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
    if split.kind == "coco":
        evaluator = _CocoEvaluator(name, tasks, False, str(folder), use_fast_impl=False)
    else:
        evaluator = _LvisEvaluator(name, tasks, False, str(folder))
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
        box=evaluator.figures["bbox"],
        mask=evaluator.figures.get("segm", {}),
        seconds=time.perf_counter() - start,
    )


def set_num_classes(cfg: DictConfig, count: int) -> None:
    """Make the detector that `cfg.model` describes one of `count` categories."""
    (cfg.model.roi_heads if "roi_heads" in cfg.model else cfg.model).num_classes = count
