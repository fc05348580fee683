"""Training configs against the published recipe, and against the models they build."""

import copy
import functools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.data import get_detection_dataset_dicts

from analysis import paper
from backbones.weights import catalog as weights
from experiments import studies
from experiments.costs.detector_cost import detector_cost
from experiments.data import catalog
from experiments.errors import UserError
from experiments.recipe import checks, config, resolved
from tests.conftest import ROOT

DETECTORS = ("mask_rcnn", "cascade_mask_rcnn", "retinanet")
ALL = [
    str(path.relative_to(ROOT)).replace("mask_rcnn", detector)
    for folder in ("coco", "lvis", "mini", "small")
    for path in sorted((ROOT / "configs" / folder).glob("*mask_rcnn_*.py"))
    for detector in DETECTORS
    if not ("lvis" in str(path.relative_to(ROOT)) and detector == "retinanet")
]
MODELS = {
    "vit-b": "ViT-B",
    "vit-l": "ViT-L",
    "vit-h": "ViT-H",
    "swin-b": "Swin-B",
    "swin-l": "Swin-L",
    "mvitv2-b": "MViTv2-B",
    "mvitv2-l": "MViTv2-L",
    "mvitv2-h": "MViTv2-H",
}


@functools.cache
def load(scale, size, detector="mask_rcnn"):
    return config.load(config.base_path(scale, size, detector))


def test_no_config_is_made_of_what_does_not_fit_it():
    with pytest.raises(UserError, match=r"retinanet_vit_b.py: RetinaNet has no federated"):
        config.load("configs/lvis/retinanet_vit_b.py")
    with pytest.raises(UserError, match=r"no config at configs/coco/retinanet_vit_q.py: give"):
        config.load("configs/coco/retinanet_vit_q.py")
    with pytest.raises(UserError, match=r"unknown detector 'retinane'.*'retinanet'"):
        config.base_path("coco", "vit-b", "retinane")


@pytest.mark.parametrize("path", [p for p in ALL if "/mini/" in p])
def test_mini_scale_has_one_arithmetic_on_every_cpu(path):
    assert not config.load(ROOT / path).train.amp


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("size", MODELS)
def test_published_recipe(size, detector):
    """Table 11 of the paper, and the settings that all its rows share."""
    table = paper.load("recipes")
    pretrain = "IN-1K MAE" if size.startswith("vit") else "supervised"
    row = table[(table["model"] == MODELS[size]) & (table["pretrain"] == pretrain)].iloc[0]
    cfg = load("coco", size, detector)
    assert cfg.optimizer.lr == pytest.approx(row["lr"])
    assert cfg.optimizer.weight_decay == row["weight_decay"]
    assert list(cfg.optimizer.betas) == [0.9, 0.999]
    assert cfg.schedule.warmup_iters == 250
    assert cfg.dataloader.train.total_batch_size == 64
    assert cfg.dataloader.image_size == cfg.model.backbone.square_pad == 1024
    # 100 epochs are 184,375 iterations of 64 images in the released configs, 36 are 67,500.
    if size == "mvitv2-h":
        assert cfg.train.max_iter == 67500
    else:
        assert cfg.train.max_iter == math.floor(184375 * row["epochs"] / 100)
    encoder = cfg.model.backbone.get("bottom_up", cfg.model.backbone)
    assert encoder.drop_path_rate == row["drop_path"]
    decay = 1.0 if np.isnan(row["layerwise_lr_decay"]) else row["layerwise_lr_decay"]
    assert cfg.param_groups.layer_decay == pytest.approx(decay)
    # Exceptions from weight decay: released configs. ViT-H decays norms and positions too.
    exceptions = {"vit-h": [], "swin-b": ["norm", "relative_position_bias"]}
    exceptions["swin-l"] = exceptions["swin-b"]
    assert list(cfg.param_groups.no_weight_decay) == exceptions.get(size, ["norm", "pos_embed"])
    if size.startswith("vit"):
        assert (encoder.window_size, encoder.img_size) == (14, 1024)


def test_retinanet_is_detectron2s():
    """Loss, matching, selection and anchors: the defaults of its yacs config."""
    model, words = load("coco", "vit-b", "retinanet").model, get_cfg().MODEL.RETINANET
    loss = (words.FOCAL_LOSS_ALPHA, words.FOCAL_LOSS_GAMMA)
    assert (model.focal_loss_alpha, model.focal_loss_gamma) == loss
    matched = [list(model.anchor_matcher[key]) for key in ("thresholds", "labels")]
    assert matched == [words.IOU_THRESHOLDS, words.IOU_LABELS]
    assert tuple(model.box2box_transform.weights) == words.BBOX_REG_WEIGHTS
    assert model.test_score_thresh == words.SCORE_THRESH_TEST
    assert model.test_nms_thresh == words.NMS_THRESH_TEST
    assert len(model.head.conv_dims) == words.NUM_CONVS
    assert list(model.head_in_features) == words.IN_FEATURES
    # Its base config's: 32 to 512 pixels and three an octave.
    assert [sizes[0] for sizes in model.anchor_generator.sizes] == [32, 64, 128, 256, 512]
    assert model.anchor_generator.sizes[0][1] == pytest.approx(32 * 2 ** (1 / 3))
    assert list(model.anchor_generator.aspect_ratios) == [0.5, 1.0, 2.0]
    assert model.head.num_anchors == 9


def test_a_probe_is_a_small_detector_of_boxes():
    """Under a tenth of what is behind the encoder in Mask R-CNN at 512 px."""
    macs = {}
    for detector in ("mask_rcnn", "probe"):
        cfg = copy.deepcopy(load("coco", "vit-s", detector))
        cfg.dataloader.image_size = cfg.model.backbone.img_size = 512
        cost = detector_cost(cfg.model)
        macs[detector] = cost.detector.macs - cost.encoder.macs
    assert not checks.check(cfg, "probe").roi_heads.mask_on
    assert not cfg.dataloader.train.mapper.use_instance_mask
    assert macs["probe"] < 0.1 * macs["mask_rcnn"]
    with pytest.raises(UserError, match="the detector probe is for a plain ViT"):
        config.load("configs/coco/probe_swin_b.py")
    assert load("mini", "vit-mini", "probe").model.roi_heads.mask_head


def test_pretraining_recipes():
    """Table 11's rows without pre-training and with a supervised one, as rows of the study."""
    study, table = studies.find("pretraining"), paper.load("recipes")
    for size in ("vit-b", "vit-l"):
        for name, pretrain in (
            ("none", "none (random init)"),
            ("sup-in1k", "supervised (IN-1K or IN-21K)"),
            ("sup-in21k", "supervised (IN-1K or IN-21K)"),
            ("mae-in1k", "IN-1K MAE"),
        ):
            cfg = resolved.resolve(study, study.variant(name, "coco"), "coco", size, {})
            of = (table["model"] == MODELS[size]) & (table["pretrain"] == pretrain)
            row = table[of].iloc[0]
            assert cfg.optimizer.lr == pytest.approx(row["lr"])
            assert cfg.optimizer.weight_decay == row["weight_decay"]
            assert cfg.model.backbone.drop_path_rate == row["drop_path"]
            assert cfg.train.max_iter == math.floor(184375 * row["epochs"] / 100)
            assert cfg.train.init_weights == name.replace("-", "_")
            # google's ViT saw pixels in -1..1, the others ImageNet's mean and deviation.
            unit = name == "sup-in21k"
            assert (list(cfg.model.pixel_std) == [127.5] * 3) == unit
            assert (list(cfg.model.pixel_mean) == [127.5] * 3) == unit
            assert not cfg.model.backbone.use_rel_pos


@pytest.mark.parametrize("path", ALL)
def test_initial_weights_are_known_for_the_encoders_size(path, tmp_path):
    """Also when the config comes back from a run's folder, with names for classes."""
    cfg = config.load(ROOT / path)
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    size = config.encoder_size(cfg)
    assert config.encoder_size(config.load(tmp_path / "config.yaml")) == size
    if path.startswith("configs/mini/"):
        assert size in ("vit-mini", "")
        assert cfg.train.init_weights == ("windows_mini" if size else "none")
        return
    assert Path(path).stem.replace("_", "-").endswith(f"-{size}")
    words = {"vit": "mae_in1k", "swin": "sup_in21k", "mvitv2": "sup_in21k", "eva02": "eva02_in21k"}
    words |= {"convnext": "dinov3_lvd1689m", "pe": f"pe_{size[3:-2]}"}
    word = words[size.split("-")[0]]
    # MAE released neither; EVA-02's detector of L starts from other images.
    word = {"vit-ti": "none", "vit-s": "sup_in1k", "eva02-l": "eva02_m38m"}.get(size, word)
    assert cfg.train.init_weights == word
    source = weights.source(cfg.train.init_weights, size)
    assert (source is None) == (size == "vit-ti")


def test_released_recipes_differ_as_documented():
    """The rows "released" of plain-vs-hierarchical are the released configs, the others not."""
    study = studies.find("plain-vs-hierarchical")
    released = paper.load("released_configs").set_index("config")
    for size, file in (
        ("swin-b", "COCO/cascade_mask_rcnn_swin_b_in21k_50ep.py"),
        ("swin-l", "COCO/cascade_mask_rcnn_swin_l_in21k_50ep.py"),
        ("mvitv2-h", "COCO/cascade_mask_rcnn_mvitv2_h_in21k_36ep.py"),
    ):
        row = study.variant(f"{size}-cascade-released", "coco")
        theirs = resolved.resolve(study, row, "coco", "", {})
        paper_s = resolved.resolve(study, study.variant(f"{size}-cascade", "coco"), "coco", "", {})
        assert theirs.optimizer.lr == pytest.approx(released.at[file, "lr"])
        assert theirs.optimizer.lr != paper_s.optimizer.lr
        assert theirs.model.backbone.bottom_up.drop_path_rate == released.at[file, "drop_path"]
        assert theirs.train.max_iter == released.at[file, "max_iter"]


def test_learning_rate_steps_of_the_released_configs():
    decay = instantiate(load("coco", "vit-b").schedule.decay)
    # x 0.1 at iteration 163,889 and x 0.01 at 177,546 of 184,375.
    for iteration, factor in [(163000, 1.0), (164000, 0.1), (177000, 0.1), (178000, 0.01)]:
        assert decay(iteration / 184375) == factor


@pytest.mark.parametrize("path", ALL)
def test_every_config_builds_its_detector(path):
    cfg = config.load(ROOT / path)
    model = config.build_on_meta(cfg.model)
    levels = model.backbone.output_shape()
    dense = "head_in_features" in cfg.model
    features = cfg.model.head_in_features if dense else cfg.model.proposal_generator.in_features
    anchors = (cfg.model if dense else cfg.model.proposal_generator).anchor_generator
    assert [levels[f].stride for f in features] == list(anchors.strides)
    for part in () if dense else ("box", "mask"):
        scales = [1 / levels[f].stride for f in cfg.model.roi_heads[f"{part}_in_features"]]
        assert scales == list(cfg.model.roi_heads[f"{part}_pooler"].scales)
    instantiate(cfg.dataloader.train.mapper)
    instantiate(cfg.dataloader.test.mapper)


@pytest.mark.parametrize(
    ("scale", "size"), [("coco", "vit-ti"), ("coco", "vit-b"), ("mini", "vit-mini")]
)
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
        assert max(example["image"].shape[1:]) <= cfg.dataloader.image_size
        instances = example["instances"]
        found += len(instances)
        boxes = instances.gt_masks.get_bounding_boxes().tensor
        torch.testing.assert_close(boxes, instances.gt_boxes.tensor, rtol=0, atol=1.5)
    assert found > 0
