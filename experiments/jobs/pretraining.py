"""One pre-training run: train, validate, keep the encoder, record."""

import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from backbones.pretraining.blocks import features

from ..costs import environment
from ..costs.devices import autocast, precision
from ..data.stream import Stream
from ..errors import UserError
from ..json_files import write_json
from ..recipe import config, initial_values
from ..recipe.config import plain_config
from ..records import LAST_WEIGHTS, VERSION, checkpoints
from ..records.pretraining import PretrainingRecord
from ..training import distributed
from ..training.fit import fit, training_figures
from .detection import Execute, log_to, now
from .pretraining_runs import ENCODER, FILES, RECORD, PretrainingRun, copied

_LOGGER = logging.getLogger("detectron2")


def _execute(run: PretrainingRun) -> None:
    started = now()
    folder = Path(run.folder)
    if config.fingerprint(run.cfg, run.data.digest) != run.fingerprint:
        raise UserError(f"{run.folder}: what is installed changed since it was planned: run again")
    config.check_processes(run.cfg, comm.get_world_size())
    log_to(folder)
    cfg = copied(run)
    if comm.is_main_process():
        LazyConfig.save(cfg, str(folder / "config.yaml"))
    torch.set_num_threads(cfg.train.threads or distributed.cores())
    versions, git_commit = environment.versions(), environment.git_commit()
    macs = distributed.of_main(lambda: step_macs(cfg))
    files = folder / FILES
    distributed.of_main(lambda: run.data.write_list(files))

    model = _initial(cfg, folder)

    def stream() -> Stream:
        mapper = instantiate(cfg.dataloader.train.mapper)
        return Stream(run.data.entries("train", files), mapper, cfg.train.seed)

    fit(cfg, folder, model, model, stream, macs)
    state = checkpoints.read(folder / LAST_WEIGHTS)
    model = instantiate(cfg.model).to(distributed.device())
    model.load_state_dict(state["model"])
    figures = validate(model, cfg, run.data.entries("val", files)) if run.data.val else {}
    if not comm.is_main_process():
        return
    torch.save(
        {"model": {k: v.cpu() for k, v in model.encoder.state_dict().items()}}, folder / ENCODER
    )
    record = PretrainingRecord(
        recipe=run.recipe,
        scale=run.scale,
        size=run.size,
        seed=run.seed,
        fingerprint=run.fingerprint,
        figures=figures,
        params=sum(p.numel() for p in model.parameters()),
        encoder_params=sum(p.numel() for p in model.encoder.parameters()),
        train_macs=macs,
        **training_figures(cfg, state),
        versions=versions,
        git_commit=git_commit,
        started=started,
        finished=now(),
        data=dict(
            images=run.data.counts,
            train=run.data.train,
            val=run.data.val,
            digest=run.data.digest,
        ),
        config=plain_config(cfg),
    )
    write_json(folder / RECORD, {"version": VERSION, **asdict(record)})
    checkpoints.remove_all_but_last(folder)


# Pre-trains, keeps the encoder, and writes the record.
pretrain = Execute(_execute, RECORD)


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
