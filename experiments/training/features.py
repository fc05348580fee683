"""What a frozen encoder puts out, computed once and read by every run that has it behind its heads.

Where `train.tuning=frozen` and `dataloader.train.views` say that neither the encoder nor what it
sees changes, its maps are kept as float16, for all views of all images, in a folder named by the
hash of what they depend on: `<runs>/<scale>/features/<hash>/` with features.npy, (views, numbers of
one view's maps), and index.json, which is written when all of them are there.
"""

import contextlib
import hashlib
import inspect
import io
import json
import logging
import math
import os
import time
from collections import deque
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.evaluation import inference_context
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from backbones import build_backbone
from backbones.weights import encoder_of

from ..data.annotations import Split
from ..data.stream import Views
from ..errors import UserError
from ..json_files import write_json
from ..recipe.identity import foreign, plain_config
from . import distributed

FOLDER = "features"
_ARRAY, _INDEX = "features.npy", "index.json"
_VERSION = 1  # of what is kept: raise it when the same words come to give other features
_DTYPE = np.dtype(np.float16)
_TOGETHER = 8  # views of a pass
# Words of `build_backbone` that its encoder does not know.
_NECK = inspect.signature(build_backbone).parameters.keys() - {"size", "words"}
_REPORT_EVERY = 10.0  # seconds, while they are computed

_LOGGER = logging.getLogger("detectron2")  # whose lines are kept in a run's log


class Kept(Dataset):
    """The examples of `views`, their images blank, with "features" of what would be seen there: one
    tensor (h, w, C) for each of the encoder's maps, float16.

    Args:
        views: whose mapper is from now on told not to read images.
        folder: with whole features of them.
        maps: shape (h, w, C) of each map, in their order in a row.
    """

    def __init__(self, views: Views, folder: Path, maps: dict[str, list[int]]):
        views.mapper.reads = False
        self.views, self.count = views, views.count
        self.folder, self.maps = folder, maps

    @cached_property
    def _rows(self) -> np.ndarray:
        # In each process that reads: a copy for another would be of everything.
        return np.load(self.folder / _ARRAY, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, number: int) -> dict[str, Any]:
        example = self.views[number]
        row = torch.from_numpy(np.array(self._rows[number]))
        parts = row.split([math.prod(shape) for shape in self.maps.values()])
        example["features"] = {
            name: part.view(shape)
            for (name, shape), part in zip(self.maps.items(), parts, strict=True)
        }
        return example


def feed(detector: nn.Module) -> None:
    """Let a detector's encoder give the "features" of examples that have them, and compute those of
    others."""
    _, encoder = encoder_of(detector)
    waiting: deque[dict[str, Tensor]] = deque()
    compute = encoder.forward

    def note(module: nn.Module, inputs: tuple) -> None:
        waiting.clear()
        waiting.extend(x["features"] for x in inputs[0] or () if "features" in x)

    def forward(images_BCHW: Tensor) -> dict[str, Tensor]:
        if not waiting:
            return compute(images_BCHW)
        found = [waiting.popleft() for _ in range(len(images_BCHW))]
        # In float32 before they are stacked: autocast on a CPU knows no float16.
        return {
            name: torch.stack(
                [maps[name].to(images_BCHW.device).float() for maps in found]
            ).permute(0, 3, 1, 2)
            for name in found[0]
        }

    detector.register_forward_pre_hook(note)
    encoder.forward = forward


def kept(
    detector: nn.Module, cfg: DictConfig, part: str, split: Split, dicts: list[dict], root: Path
) -> Kept:
    """The features of a split, computed now as far as they are not there.

    Called in all processes of a run. The first computes, in float32; processes of other runs that
    want the same wait for it. What was interrupted goes on.

    Args:
        detector: whose encoder is that of `cfg`, whole in each process.
        part: "train" or "test", of `cfg.dataloader`.
        split: that `dicts` are of.
        dicts: detectron2 dataset dicts.
        root: folder of the runs of a scale.

    Raises:
        UserError: an image cannot be read, or a feature is beyond float16.
    """
    words = cfg.dataloader[part]
    mapper = instantiate(words.mapper)
    if not hasattr(mapper, "reads"):
        raise UserError(
            f"dataloader.{part}.mapper={type(mapper).__name__} cannot be told not to read images, "
            "which kept features need: experiments.data.mapper.Mapper can, or set "
            "dataloader.train.views=0"
        )
    views = Views(dicts, mapper, words.get("views", 0) or 1)
    shapes = shapes_of(detector)
    identity = _identity(detector, cfg, part, split, views)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    folder = root / FOLDER / digest[:16]
    folder.mkdir(parents=True, exist_ok=True)

    def compute() -> None:
        if not _is_whole(folder, shapes, len(views)):
            _compute(detector, views, folder, shapes, words.num_workers)
            index = dict(identity=identity, rows=len(views), maps=shapes)
            write_json(folder / _INDEX, index)

    with distributed.alone(folder / ".lock"):
        distributed.of_main(compute)
    return Kept(views, folder, shapes)


def shapes_of(detector: nn.Module) -> dict[str, list[int]]:
    """Of the encoder's maps, (h, w, C), all images padded to the backbone's square."""
    _, encoder = encoder_of(detector)
    whole = max(detector.backbone.size_divisibility, 1)
    side = math.ceil(detector.backbone.padding_constraints["square_size"] / whole) * whole
    return {
        name: [side // spec.stride, side // spec.stride, spec.channels]
        for name, spec in encoder.output_shape().items()
    }


def _identity(
    detector: nn.Module, cfg: DictConfig, part: str, split: Split, views: Views
) -> dict[str, Any]:
    """All that features depend on, as plain data."""
    plain, (name, encoder) = plain_config(cfg), encoder_of(detector)
    backbone = plain["model"]["backbone"]
    words = backbone.get(name.rpartition(".")[2], backbone)
    if words is backbone and name == "backbone.net":  # one builder's words, for encoder and neck
        words = {word: value for word, value in backbone.items() if word not in _NECK}
    words.pop("use_act_checkpoint", None)
    tensors = hashlib.sha256()
    for name, tensor in encoder.state_dict().items():
        tensors.update(name.encode())
        tensors.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    with open(split.json_file, "rb") as file:
        annotations = hashlib.file_digest(file, "sha256").hexdigest()
    mapper = plain["dataloader"][part]["mapper"]
    return dict(
        version=_VERSION,
        encoder=words,
        foreign=foreign(words),
        weights=tensors.hexdigest(),
        pixels=[plain["model"].get(key) for key in ("pixel_mean", "pixel_std", "input_format")],
        maps=shapes_of(detector),
        mapper=[mapper.get(key) for key in ("_target_", "augmentations", "image_format")],
        part=part,
        annotations=annotations,
        images=len(views.dicts),
        views=views.count,
    )


def _is_whole(folder: Path, shapes: dict[str, list[int]], rows: int) -> bool:
    """Whether all is there. What is there and is not what it should be is removed."""
    index, array = folder / _INDEX, folder / _ARRAY
    if not index.is_file():
        return False
    with contextlib.suppress(OSError, ValueError, KeyError):
        content = json.loads(index.read_text())
        header = _header(shapes, rows)
        whole = len(header) + rows * row_bytes(shapes)
        with open(array, "rb") as file:
            same = file.read(len(header)) == header and os.path.getsize(array) == whole
        if same and (content["rows"], content["maps"]) == (rows, shapes):
            return True
    _LOGGER.warning("%s is broken: computed again", folder)
    index.unlink()
    array.unlink(missing_ok=True)
    return False


def row_bytes(shapes: dict[str, list[int]]) -> int:
    return _DTYPE.itemsize * sum(map(math.prod, shapes.values()))


def _header(shapes: dict[str, list[int]], rows: int) -> bytes:
    """Of the .npy file."""
    header, columns = io.BytesIO(), row_bytes(shapes) // _DTYPE.itemsize
    words = dict(descr=_DTYPE.str, fortran_order=False, shape=(rows, columns))
    np.lib.format.write_array_header_1_0(header, words)
    return header.getvalue()


class _Told(Dataset):
    def __init__(self, views: Views):
        self.views = views

    def __getitem__(self, number: int) -> dict | UserError:
        try:
            return self.views[number]
        except UserError as error:  # raised in a worker, torch would wrap it in a traceback
            return error


def _compute(
    detector: nn.Module, views: Views, folder: Path, shapes: dict[str, list[int]], workers: int
) -> None:
    """Write the array, or what is missing of it: rows are in order, and behind the last whole one
    nothing counts."""
    header, bytes_of_row = _header(shapes, len(views)), row_bytes(shapes)
    _, encoder = encoder_of(detector.to(distributed.device()))
    with open(folder / _ARRAY, "a+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        done = (size - len(header)) // bytes_of_row if file.read(len(header)) == header else 0
        file.truncate(len(header) + done * bytes_of_row if done else 0)
        if not done:
            file.write(header)
        _LOGGER.info(
            "features of %d views, %.2f GB, in %s: %d of them done before",
            *(len(views), len(views) * bytes_of_row / 1e9, folder, done),
        )
        loader = DataLoader(
            _Told(views),
            batch_size=_TOGETHER,
            sampler=range(done, len(views)),
            num_workers=min(workers, distributed.cores()),
            collate_fn=list,
        )
        told = time.monotonic()
        with inference_context(encoder), torch.no_grad():
            for examples in loader:
                if unreadable := [x for x in examples if isinstance(x, UserError)]:
                    raise unreadable[0]
                maps = encoder(detector.preprocess_image(examples).tensor)
                rows = [maps[name].permute(0, 2, 3, 1).flatten(1) for name in shapes]
                rows_BN = torch.cat(rows, 1).to(torch.float16).cpu()
                for example, finite in zip(examples, rows_BN.isfinite().all(1), strict=True):
                    if not finite:
                        raise UserError(
                            f"features of {example['file_name']} are beyond float16: set "
                            "dataloader.train.views=0, which computes them each time"
                        )
                file.write(rows_BN.numpy().tobytes())
                file.flush()
                os.fsync(file.fileno())
                done += len(examples)
                if time.monotonic() - told > _REPORT_EVERY or done == len(views):
                    told = time.monotonic()
                    _LOGGER.info("features of %d of %d views", done, len(views))
