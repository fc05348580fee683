"""More images in a pass change nothing but rounding: what losses are averaged over stays."""

import copy
import logging

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import get_detection_dataset_dicts
from detectron2.utils.events import EventStorage
from torch import nn

from backbones.drop_path import DropPath
from experiments import studies
from experiments.data import catalog
from experiments.errors import UserError
from experiments.recipe import checks, config, identity, initial_values
from experiments.recipe.resolved import resolve
from experiments.training import passes
from experiments.training.training_loop import Trainer

STEPS, IMAGES = 2, 4  # of a step
STUDY = studies.find("plain-vs-hierarchical")
WORDS = {
    "model.backbone.stem": "patchify",  # the mini scale's own has batch norm
    "model.backbone.drop_path_rate": 0.4,
    "dataloader.train.total_batch_size": IMAGES,
    "dataloader.train.loss_batch_size": 1,
    "dataloader.train.micro_batch_size": 1,
}


def resolved(row: str, **words):
    words = WORDS | {key.replace("__", "."): value for key, value in words.items()}
    return resolve(STUDY, STUDY.variant(row, "mini"), "mini", "", words)


@pytest.fixture(scope="module")
def dicts(small_set):
    data = catalog.prepare("mini", small_set["dataset"], small_set["val"])
    return get_detection_dataset_dicts(data.train.register())[: STEPS * IMAGES]


def trained(cfg, dicts, images: int, group: int = 1, checkpointing: bool = False):
    """Weights after a few steps, losses of the last, and how many groups a pass had."""
    np.random.seed(0)  # of augmentations
    mapper = instantiate(cfg.dataloader.train.mapper)
    examples = [mapper(copy.deepcopy(d)) for d in dicts]
    model = initial_values.construct(lambda: instantiate(cfg.model), 0)
    if checkpointing:
        model.backbone.net.use_act_checkpoint = True
    config.tune(model, cfg)
    groups = passes.groups(model, images, group)
    images = groups * group
    trainer = Trainer(
        model,
        [examples[i : i + images] for i in range(0, len(examples), images)],
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01),
        micro_batches=IMAGES // images,
        groups=groups,
    )
    model.train()
    with EventStorage() as storage:
        for trainer.iter in range(STEPS):
            trainer.run_step()
        losses = {name: value for name, (value, _) in storage.latest().items() if "loss" in name}
    normalizer = getattr(model, "loss_normalizer", 0.0)
    return model.state_dict(), losses | {"normalizer": normalizer}, groups


@pytest.mark.parametrize(
    ("row", "tuning"),
    [("vit", "full"), ("vit", "last:2"), ("vit-cascade", "full"), ("vit-retinanet", "full")],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_larger_pass_is_the_same_step(row, tuning, checkpointing, dicts):
    cfg = resolved(row, train__tuning=tuning)
    expected, losses, groups = trained(cfg, dicts, 1)
    assert groups == 1
    found, own_losses, groups = trained(cfg, dicts, IMAGES, checkpointing=checkpointing)
    assert groups == IMAGES
    assert own_losses == pytest.approx(losses, rel=1e-4)
    start = initial_values.construct(lambda: instantiate(cfg.model), 0).state_dict()
    moved = sum((expected[k] - start[k]).double().square().sum() for k in start) ** 0.5
    wrong = sum((expected[k] - found[k]).double().square().sum() for k in start) ** 0.5
    assert wrong < 1e-3 * moved


def test_several_passes_of_several_groups(dicts):
    """A group's random numbers are those of its place in the step, in whichever pass it is."""
    cfg = resolved("vit")
    losses = trained(cfg, dicts, 1)[1]
    _, own_losses, groups = trained(cfg, dicts, 2)
    assert groups == 2
    assert own_losses == pytest.approx(losses, rel=1e-4)


def test_groups_of_two(dicts):
    cfg = resolved("vit")
    _, losses, _ = trained(cfg, dicts, 2, group=2)
    _, own_losses, groups = trained(cfg, dicts, 4, group=2)
    assert groups == 2
    assert own_losses == pytest.approx(losses, rel=1e-4)
    others = trained(cfg, dicts, 1)[1]  # another average
    assert others != pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize(
    ("row", "words", "why"),
    [
        ("vit", {"model__backbone__stem": "conv"}, "batch norm is over a group"),
        ("vit", {"model__backbone__mask_ratio": 0.25, "model__backbone__use_rel_pos": False},
         "the encoder draws for a group as a whole"),
        ("swin", {}, "only detectors with a plain ViT run several groups at once"),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_together_is_not(row, words, why, dicts, caplog):
    own = {k: v for k, v in WORDS.items() if row == "vit" or "backbone" not in k}
    words = own | {key.replace("__", "."): value for key, value in words.items()}
    cfg = resolve(STUDY, STUDY.variant(row, "mini"), "mini", "", words)
    logger = logging.getLogger("detectron2")
    logger.propagate, before = True, logger.propagate
    try:
        with caplog.at_level(logging.INFO, "detectron2"):
            assert passes.groups(instantiate(cfg.model), 4, 1) == 1
    finally:
        logger.propagate = before
    assert f"{why}: 1 images a pass, not 4, with the same result" in caplog.text.replace("\n", " ")


@pytest.mark.parametrize("words", [dict(stem="conv"), dict(mask_ratio=0.25, use_rel_pos=False)])
def test_what_a_frozen_encoder_does_not_do_is_no_obstacle(words):
    words = {f"model__backbone__{word}": value for word, value in words.items()}
    cfg = resolved("vit", train__tuning="frozen", **words)
    model = instantiate(cfg.model)
    assert passes.groups(model, 4, 1) == 1
    config.tune(model, cfg)
    assert passes.groups(model, 4, 1) == 4


def test_a_users_module_may_know_its_group(dicts):
    class Mine(nn.Module):
        pass

    model = instantiate(resolved("vit").model)
    assert passes.groups(model, 4, 1) == 4
    model.backbone.net.blocks[0].mlp.act = Mine()
    assert passes.groups(model, 4, 1) == 1


def test_images_of_a_pass_are_no_part_of_identity():
    def mark(group: int, images: int) -> str:
        words = dict(dataloader__train__loss_batch_size=group)
        cfg = resolved("vit", **words, dataloader__train__micro_batch_size=images)
        return identity.fingerprint(cfg, "data")

    assert mark(1, 4) == mark(1, 2) == mark(1, 1)
    assert mark(2, 2) == mark(2, 4) != mark(1, 2)
    cfg = resolved("vit")
    cfg.dataloader.train.update(total_batch_size=6, loss_batch_size=2, micro_batch_size=3)
    with pytest.raises(UserError, match="micro_batch_size=3 is no multiple of loss_batch_size=2"):
        checks.check_training(cfg, "here")


def test_drop_path_is_torchvisions():
    path, x = DropPath(0.5).train(), torch.randn(8, 3, 3, 2)
    torch.manual_seed(5)
    expected = torch.stack([path(x, 0), path(x, 1)])
    torch.manual_seed(5)
    path.drawn = path.draw(8, x.device)
    assert torch.equal(torch.stack([path(x, 0), path(x, 1)]), expected)
    assert torch.equal(path.eval()(x, 0), x)
