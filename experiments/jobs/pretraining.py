"""A run that pre-trains an encoder: its steps."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from backbones.pretraining.blocks import features

from ..costs.devices import autocast, precision
from ..data.stream import Stream
from ..errors import UserError
from ..recipe import config, initial_values
from ..records import LAST_WEIGHTS, checkpoints
from ..training import distributed
from ..training.fit import fit
from .job import Job
from .pretraining_runs import ENCODER, FILES, copied

_LOGGER = logging.getLogger("detectron2")


class Pretraining(Job):
    """Pre-trains, validates, keeps the encoder, and writes the record."""

    CHANGED = "{run.folder}: what is installed changed since it was planned: run again"

    def prepare(self) -> tuple[DictConfig, dict[str, Any]]:
        run, data, cfg = self.run, self.run.data, copied(self.run)
        macs = distributed.of_main(lambda: step_macs(cfg))
        distributed.of_main(lambda: data.write_list(self.folder / FILES))
        found = dict(images=data.counts, train=data.train, val=data.val, digest=data.digest)
        return cfg, dict(recipe=run.recipe, train_macs=macs, data=found)

    def fit(self, cfg: DictConfig, macs: int | None) -> dict[str, Any]:
        model = _initial(cfg, self.folder)

        def stream() -> Stream:
            mapper = instantiate(cfg.dataloader.train.mapper)
            return Stream(self._entries("train"), mapper, cfg.train.seed)

        fit(cfg, self.folder, model, model, stream, macs)
        return checkpoints.read(self.folder / LAST_WEIGHTS)

    def finish(self, cfg: DictConfig, model: nn.Module) -> dict[str, Any]:
        figures = validate(model, cfg, self._entries("val")) if self.run.data.val else {}
        if comm.is_main_process():
            encoder = {k: v.cpu() for k, v in model.encoder.state_dict().items()}
            torch.save({"model": encoder}, self.folder / ENCODER)
        return dict(
            figures=figures,
            params=sum(p.numel() for p in model.parameters()),
            encoder_params=sum(p.numel() for p in model.encoder.parameters()),
        )

    def _entries(self, split: str) -> list[dict[str, Any]]:
        return self.run.data.entries(split, self.folder / FILES)


def _initial(cfg: DictConfig, folder: Path) -> nn.Module:
    """The model before training: random, or as an earlier pre-training left it, heads included."""
    model = initial_values.construct(lambda: instantiate(cfg.model), cfg.train.seed)
    word = cfg.train.init_weights
    if config.is_recipe(word):
        before = folder.parent / word.removeprefix(config.RECIPE) / LAST_WEIGHTS
        model.load_state_dict(checkpoints.read(before)["model"])
        _LOGGER.info("Starts from %s", before)
    elif word != "none":
        raise UserError(f"train.init_weights={word} does not fit a recipe: none, or another recipe")
    return model


def step_macs(cfg: DictConfig) -> int | None:
    """MACs of one image's forward and backward pass, counted without computing it; None for a
    network that cannot be run without values."""
    model = config.build_on_meta(cfg.model).train()
    side = cfg.dataloader.image_size
    try:
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            image = torch.zeros(3, side, side, dtype=torch.uint8)
            sum(model([dict(image=image, label=0)]).values()).backward()
    except RuntimeError as error:
        _LOGGER.info("not counted: %s", error)
        return None
    return counter.get_total_flops() // 2


@torch.no_grad()
def validate(model: nn.Module, cfg: DictConfig, entries: list[dict[str, Any]]) -> dict[str, float]:
    """Figures of the validation images: means of what the model's `validate` says of each, and the
    `effective_rank` of the encoder's tokens. Random numbers, as of hidden patches, are those of the
    batch in each call. Processes share the batches; the figures are the same in all."""
    test, total = cfg.dataloader.test, len(entries)
    batches = [range(total)[i : i + test.batch_size] for i in range(0, total, test.batch_size)]
    mine = range(comm.get_rank(), len(batches), comm.get_world_size())
    loader = DataLoader(
        _Mapped(entries, instantiate(test.mapper)),
        batch_sampler=[batches[number] for number in mine],
        num_workers=min(test.num_workers, distributed.cores()),
        collate_fn=list,
    )
    model.eval()
    totals: dict[str, float] = {}
    channels = model.encoder.spec.dim
    products_CC = torch.zeros(channels, channels, dtype=torch.float64, device=distributed.device())
    with autocast(distributed.device().type, precision(cfg.train.amp)):
        for number, batch in zip(mine, loader, strict=True):
            torch.manual_seed(number)
            for name, values in model.validate(batch).items():
                totals[name] = totals.get(name, 0.0) + float(values.double().sum())
            x_BNC = features(model.encoder, model.cls_token, model.pixels.of(batch))
            x_MC = x_BNC.flatten(0, 1).double()
            products_CC = products_CC + x_MC.T @ x_MC
    of_all = comm.all_gather(totals)
    sums = {name: sum(each.get(name, 0.0) for each in of_all) for name in of_all[0]}
    rank = effective_rank(distributed.summed(products_CC.cpu()))
    return {name: value / total for name, value in sums.items()} | {"effective_rank": rank}


def effective_rank(products_CC: Tensor) -> float:
    """In how many directions vectors of C channels point: the exponential of the entropy of their
    singular values' shares, 1 to C. Of pre-trained features it goes with what they are worth
    afterwards (RankMe, arXiv:2210.02885, there of one vector an image).

    Args:
        products_CC: sum of the vectors' outer products.
    """
    singular_C = torch.linalg.eigvalsh(products_CC).clamp(min=0).sqrt()
    shares_C = singular_C / singular_C.sum()
    return float(torch.special.entr(shares_C).sum().exp())


class _Mapped(torch.utils.data.Dataset):
    def __init__(self, entries: list[dict], mapper: Callable[[dict], dict]):
        self.entries, self.mapper = entries, mapper

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict:
        return self.mapper(self.entries[index])
