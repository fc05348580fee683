"""Box and mask AP of a detector on a COCO-format set, by detectron2's evaluator and pycocotools."""

import contextlib
import io
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import instantiate
from detectron2.data import get_detection_dataset_dicts
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from omegaconf import DictConfig
from torch import nn
from torch.utils.data import DataLoader, Dataset

from .data.catalog import Split
from .records import COCO_FIGURES

PREDICTIONS = "coco_instances_results.json"  # detectron2's name


@dataclass(frozen=True)
class Result:
    """COCO's twelve figures (0..100; None where there is no such object) for boxes and masks."""

    box: dict[str, float | None]
    mask: dict[str, float | None]
    seconds: float


class _Evaluator(COCOEvaluator):
    """detectron2's, keeping all twelve figures; it derives six."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.figures: dict[str, dict[str, float | None]] = {}

    def _derive_coco_results(self, coco_eval, iou_type, class_names=None):
        if coco_eval is None:  # no detection at all: of all that there is, nothing was found
            self.figures[iou_type] = {
                figure: 0.0 if self._some_object(figure) else None for figure in COCO_FIGURES
            }
        else:
            values = [float(v) * 100 if v > -1 else None for v in coco_eval.stats]
            self.figures[iou_type] = dict(zip(COCO_FIGURES, values, strict=True))
        return super()._derive_coco_results(coco_eval, iou_type, class_names)

    def _some_object(self, figure: str) -> bool:
        """Whether the set has an object that the figure is about, by COCO's ranges of area."""
        low, high = {"s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}.get(
            figure[-1], (0, 1e10)
        )
        objects = (a for a in self._coco_api.anns.values() if not a["iscrowd"])
        return any(low <= a["area"] <= high for a in objects)


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
        cfg: config, for `dataloader.test`.
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
    evaluator = _Evaluator(name, ("bbox", "segm"), False, str(folder), use_fast_impl=False)
    done = iter(range(1, len(loader) + 1))
    # In float32, as detectron2 does: bfloat16 scores have ties, whose order decides AP.
    inference_on_dataset(
        model,
        loader,
        evaluator,
        callbacks=dict(after_inference=lambda: progress(next(done), len(loader))),
    )
    os.remove(folder / "instances_predictions.pth")  # the same as PREDICTIONS, another format
    return Result(
        box=evaluator.figures["bbox"],
        mask=evaluator.figures["segm"],
        seconds=time.perf_counter() - start,
    )
