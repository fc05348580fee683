"""What training will take: time on a GPU of some name, or on this machine; memory; disk."""

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from rich.console import Console

from ..costs.detector_cost import detector_cost
from ..costs.devices import GPUS, Gpu, macs_per_second, precision
from ..costs.training_cost import Step, training_step
from ..errors import UserError
from ..jobs.pretraining import step_macs
from ..jobs.pretraining_runs import PretrainingRun, copied
from ..jobs.runs import DetectionRun
from ..recipe import config, identity
from ..recipe.tuning import FULL
from ..training import features, passes
from ..training.training_loop import Trainer

_FREE_HOURS = 3.0  # on a CPU; what takes longer must be wanted
_CPU_SHARE = 0.7  # of this CPU's rate of large products, see docs/plan.md


# ---- A GPU by name -------------------------------------------------------------------------------


# Of an A100 in training: fitted to the times of detectron2's twelve released ViT models, counted in
# the textbook form, as detectron2 computes attention (docs/plan.md has the errors).
_A100_MACS_PER_SECOND = 12.7e12
SECONDS_PER_KERNEL = 47e-6  # with one image per pass


def seconds_on(gpu: Gpu, step: Step) -> float:
    """Of one image's forward and backward pass, counted in the textbook form.

    The rate of products is an A100's achieved one times the ratio of both vendors' rates; the time
    of a kernel is an A100's on every GPU, as that of small ones is the host's.
    """
    rate = _A100_MACS_PER_SECOND * gpu.tflops / GPUS["a100-40gb"].tflops
    return step.macs / rate + step.kernels * SECONDS_PER_KERNEL


# ---- This machine --------------------------------------------------------------------------------


_WARMUP, _ITERATIONS = 2, 5


def measured_images(cfg: DictConfig) -> int:
    """Images that `measured_seconds` trains on."""
    return math.prod(_micro_batches(cfg)) * (_WARMUP + _ITERATIONS)


def _micro_batches(cfg: DictConfig) -> tuple[int, int]:
    """Of a measured iteration, how many, four at most, and the images of each."""
    total, micro = config.batch(cfg)
    return min(total // micro, 4), micro


def measured_seconds(cfg: DictConfig) -> float:
    """Seconds per image of real training iterations on this machine, data loading left out.

    Images are noise with eight objects each. The median iteration counts.
    """
    side = cfg.dataloader.image_size
    device = "cuda" if torch.cuda.is_available() else "cpu"
    accumulate, micro = _micro_batches(cfg)
    group = config.group(cfg)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(cfg.train.threads or threads)
        model = instantiate(cfg.model).to(device)
        config.tune(model, cfg)
        groups = passes.groups(model, micro, group)
        micro = groups * group
        images = [_image(side) for _ in range(micro)]
        if config.keeps_features(cfg):
            features.feed(model)
            maps = {name: torch.zeros(shape) for name, shape in features.shapes_of(model).items()}
            images = [image | {"features": maps} for image in images]
        trainer = Trainer(
            model,
            itertools.repeat(images),
            torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0),
            micro_batches=accumulate,
            groups=groups,
            precision=precision(cfg.train.amp),
            clip_grad_norm=cfg.train.clip_grad_norm,
        )
        model.train()
        seconds = []
        with EventStorage():
            for trainer.iter in range(_WARMUP + _ITERATIONS):
                start = time.perf_counter()
                trainer.run_step()
                if device == "cuda":
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return median(seconds[_WARMUP:]) / (accumulate * micro)


def _image(side: int) -> dict:
    """What a mapper hands to a detector: eight boxes along the diagonal."""
    corners = torch.linspace(0, side / 2, 8)
    boxes = torch.stack([corners, corners, corners + side / 4, corners + side / 4], 1)
    instances = Instances((side, side), gt_boxes=Boxes(boxes), gt_classes=torch.zeros(8).long())
    instances.gt_masks = PolygonMasks(
        [[[x0, y0, x1, y0, x1, y1, x0, y1]] for x0, y0, x1, y1 in boxes.double().numpy()]
    )
    image = torch.randint(0, 256, (3, side, side), dtype=torch.uint8)
    return dict(image=image, instances=instances, height=side, width=side)


def cpu_seconds(cfg: DictConfig) -> float:
    """Seconds per image on this CPU, from its rate of large products."""
    dtype = precision(cfg.train.amp)
    size = detector_cost(cfg.model).size
    low = dtype is not torch.float32
    trains = config.tuning(cfg), config.keeps_features(cfg)
    step = training_step(cfg.model, 1, size, low, None, True, *trains)
    return step.macs / (_CPU_SHARE * macs_per_second(dtype))


# ---- Memory and disk -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """Bytes of training on one device, by the images of a micro batch."""

    fixed: int
    per_image: int
    least: int  # while the optimizer steps, without any image

    def of(self, images: int) -> int:
        return max(self.fixed + images * self.per_image, self.least)

    def largest_batch(self, available: float, total: int) -> int:
        """The largest micro batch that divides `total` and fits; 0: none does."""
        fitting = (n for n in range(1, total + 1) if total % n == 0 and self.of(n) <= available)
        return max(fitting, default=0)


def memory(
    cfg_model: DictConfig,
    params: int,
    size: tuple[int, int],
    amp: bool,
    checkpointing: bool | None,
    tuning: str = FULL,
    kept: bool = False,
) -> Memory:
    """What training with AdamW takes: float32 weights, gradients and two averages of those that
    train, and what `training_step` counts of one image and of two.

    Args:
        params: of the detector; others as of `training_step`.
    """
    one, two = (
        training_step(cfg_model, n, size, amp, checkpointing, False, tuning, kept) for n in (1, 2)
    )
    per_image = two.peak_bytes - one.peak_bytes
    fixed = 4 * params + 12 * one.trained
    # torch's AdamW on a GPU holds one more number per weight while it steps.
    return Memory(fixed + one.peak_bytes - per_image, per_image, fixed + 4 * one.trained)


_CHECKPOINTS = 3  # the last two and the final one, each with the optimizer's state
_BYTES_PER_PARAM = 12
_BYTES_PER_DETECTION = 500  # as JSON, see docs/plan.md
_BYTES_PER_LOG = 1000  # of metrics.json and log.txt


def disk_bytes(cfg: DictConfig, params: int, val_images: int, trains: bool = True) -> int:
    """At most: a run's checkpoints, its detections with masks on the validation images, its logs.

    Args:
        trains: False: it evaluates what another run trained.
    """
    heads = cfg.model.get("roi_heads")
    if heads is None:
        detections = cfg.model.max_detections_per_image
    else:
        predictors = heads.get("box_predictors") or [heads.box_predictor]
        detections = predictors[-1].test_topk_per_image
    logs = cfg.train.max_iter // cfg.train.log_period * _BYTES_PER_LOG
    bytes_per_param = _BYTES_PER_PARAM + 4 * bool(cfg.train.ema)
    training = _CHECKPOINTS * bytes_per_param * params + logs
    return val_images * detections * _BYTES_PER_DETECTION + trains * training


def features_bytes(cfg: DictConfig, train_images: int, val_images: int) -> int:
    """Of kept features, which all runs on an encoder read; 0 where none are."""
    if not config.keeps_features(cfg):
        return 0
    row = features.row_bytes(features.shapes_of(config.build_on_meta(cfg.model)))
    return (train_images * cfg.dataloader.train.views + val_images) * row


# ---- Before a run --------------------------------------------------------------------------------


def announce(
    processes: int,
    yes: bool,
    console: Console,
    runs: Sequence[DetectionRun],
    pretrainings: Sequence[PretrainingRun] = (),
) -> None:
    """Say how batches are made and, on a CPU, how long training will take.

    Args:
        processes: of each run.
        yes: whether the user wants it however long it takes.
        runs, pretrainings: not done yet.

    Raises:
        UserError: without a GPU it takes more than three hours, and `yes` is not said.
    """
    gpu = torch.cuda.is_available()
    for total, micro in sorted({config.batch(run.cfg) for run in [*pretrainings, *runs]}):
        where = "the CPU" if not gpu else "GPUs" if processes > 1 else "one GPU"
        by = f"{processes} processes on {where}" if processes > 1 else where
        console.print(
            f"images of a step: {total}, in passes of {micro} on {by}; their gradients are added up"
        )
    if gpu:
        return
    hours = cpu_hours(runs) + pretraining_hours(pretrainings)
    text = f"all runs will take about {duration(hours)} on this CPU, there is no GPU"
    if hours > _FREE_HOURS and not yes:
        raise UserError(f"{text}: say YES=1 (--yes) to start all the same, or use SCALE=mini")
    console.print(text)


def cpu_hours(runs: Sequence[DetectionRun]) -> float:
    """Hours of training and evaluation on this CPU; shared trainings once."""
    trainings = {identity.training_fingerprint(run.cfg, run.data.digest): run for run in runs}
    training = sum(
        cpu_seconds(run.cfg) * config.batch(run.cfg)[0] * run.cfg.train.max_iter
        for run in trainings.values()
    )
    macs = sum(detector_cost(r.cfg.model).detector.macs * r.data.images[1] for r in runs)
    return (training + macs / (_CPU_SHARE * macs_per_second(torch.float32))) / 3600


def pretraining_hours(runs: Sequence[PretrainingRun]) -> float:
    """Hours of training on this CPU; of what cannot be counted, none."""
    seconds = 0.0
    for run in runs:
        rate = macs_per_second(precision(run.cfg.train.amp))
        macs = (step_macs(copied(run)) or 0) * config.batch(run.cfg)[0] * run.cfg.train.max_iter
        seconds += macs / (_CPU_SHARE * rate)
    return seconds / 3600


def duration(hours: float) -> str:
    """As words: minutes, hours, or days from 48 hours on."""
    if hours < 1:
        return f"{hours * 60:.0f} minutes"
    return f"{hours:.0f} hours" if hours < 48 else f"{hours / 24:,.0f} days"
