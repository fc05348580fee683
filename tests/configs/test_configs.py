"""Training configs against the published recipe, and against the models they build."""

import copy
import math

import numpy as np
import pandas as pd
import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import get_detection_dataset_dicts

from analysis.paper import RECIPES
from backbones import SIZES
from experiments import config
from experiments.data import catalog

ALL = [(scale, size) for scale, sizes in config.BASES.items() for size in sizes]


def load(scale, size):
    return config.load(config.base_path(scale, size))


@pytest.mark.parametrize(
    ("size", "model"), [("vit-b", "ViT-B"), ("vit-l", "ViT-L"), ("vit-h", "ViT-H")]
)
def test_published_recipe(size, model):
    """Table 11 of the paper, and the settings that all its rows share."""
    table = pd.read_csv(RECIPES)
    row = table[(table["model"] == model) & (table["pretrain"] == "IN-1K MAE")].iloc[0]
    cfg = load("coco", size)
    assert cfg.optimizer.lr == pytest.approx(float(row["lr"]))
    assert cfg.optimizer.weight_decay == row["weight_decay"]
    assert list(cfg.optimizer.betas) == [0.9, 0.999]
    assert cfg.model.backbone.drop_path_rate == row["drop_path"]
    assert cfg.param_groups.layer_decay == pytest.approx(float(row["layerwise_lr_decay"]))
    # 100 epochs are 184,375 iterations of 64 images in the released configs.
    assert cfg.train.max_iter == math.floor(184375 * int(row["epochs"]) / 100)
    assert cfg.dataloader.train.total_batch_size == 64
    assert cfg.schedule.warmup_iters == 250
    assert cfg.model.backbone.window_size == 14
    assert cfg.model.backbone.img_size == cfg.model.backbone.square_pad == 1024
    # ViT-H decays norms and positions too (released configs).
    assert list(cfg.param_groups.no_weight_decay) == (
        [] if size == "vit-h" else ["norm", "pos_embed"]
    )


def test_learning_rate_steps_of_the_released_configs():
    decay = instantiate(load("coco", "vit-b").schedule.decay)
    # x 0.1 at iteration 163,889 and x 0.01 at 177,546 of 184,375.
    for iteration, factor in [(163000, 1.0), (164000, 0.1), (177000, 0.1), (178000, 0.01)]:
        assert decay(iteration / 184375) == factor


@pytest.mark.parametrize(("scale", "size"), ALL)
def test_every_config_builds_its_detector(scale, size):
    cfg = load(scale, size)
    assert cfg.model.backbone.size == size
    with torch.device("meta"):
        model = instantiate(cfg.model)
    assert len(model.backbone.net.blocks) == SIZES[size]["depth"]
    levels = model.backbone.output_shape()
    assert set(cfg.model.proposal_generator.in_features) <= set(levels)
    strides = [levels[f].stride for f in cfg.model.proposal_generator.in_features]
    assert strides == list(cfg.model.proposal_generator.anchor_generator.strides)
    for part in ("box", "mask"):
        scales = [1 / levels[f].stride for f in cfg.model.roi_heads[f"{part}_in_features"]]
        assert scales == list(cfg.model.roi_heads[f"{part}_pooler"].scales)
    instantiate(cfg.dataloader.train.mapper)
    instantiate(cfg.dataloader.test.mapper)


@pytest.mark.parametrize(("size", "millions"), [("vit-b", 111), ("vit-l", 331), ("vit-h", 662)])
def test_parameters_of_the_paper(size, millions):
    """Table 9 counts the whole Mask R-CNN with relative positions."""
    with torch.device("meta"):
        model = instantiate(load("coco", size).model)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.005)


@pytest.mark.parametrize(("scale", "size"), ALL)
def test_mapped_images_train_the_detectors_input(scale, size, small_set):
    """The config's own augmentations on images with polygons: image, boxes and masks agree."""
    cfg = load(scale, size)
    data = catalog.prepare(scale, small_set["dataset"], small_set["val"])
    mapper = instantiate(cfg.dataloader.train.mapper)
    dicts = get_detection_dataset_dicts(data.train.register())
    found = 0
    for i in range(8):
        np.random.seed(i)
        example = mapper(copy.deepcopy(dicts[i]))
        side = cfg.model.backbone.img_size
        assert max(example["image"].shape[1:]) <= side
        instances = example["instances"]
        found += len(instances)
        boxes = instances.gt_masks.get_bounding_boxes().tensor
        torch.testing.assert_close(boxes, instances.gt_boxes.tensor, rtol=0, atol=1.5)
    assert found > 0
