"""The backbones in detectron2's yacs configs."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone, build_model

from backbones import ConvStem, TokenBatchNorm, ViT, add_vit_config


def config(**words):
    cfg = get_cfg()
    add_vit_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_vit_backbone"
    cfg.MODEL.VIT.SIZE = "vit-ti"
    for key, value in words.items():
        cfg.MODEL.VIT[key] = value
    return cfg


def test_backbone_by_name():
    backbone = build_backbone(
        config(PROPAGATION="conv", COUNT=2, CONV_BLOCK="naive", OUT_CHANNELS=32)
    )
    assert backbone.net.plan.count("window + residual") == 2
    levels = backbone(torch.randn(1, 3, 64, 96))
    assert levels["p2"].shape == (1, 32, 16, 24)
    assert list(levels) == ["p2", "p3", "p4", "p5", "p6"]


def test_a_word_with_arguments():
    encoder = build_backbone(config(PROPAGATION="conv(conv_block=naive)", COUNT=2)).net
    assert "blocks.5.residual.conv2.weight" not in encoder.state_dict()


@pytest.mark.parametrize(
    ("words", "levels"),
    [
        (dict(PYRAMID="none", TOP_BLOCK="none"), ["p4"]),
        (dict(PYRAMID="avg_pool", TOP_BLOCK="p6p7"), ["p2", "p3", "p4", "p5", "p6", "p7"]),
        (dict(PYRAMID="fpn_last_map", SCALE_FACTORS=(2.0, 1.0, 0.5)), ["p3", "p4", "p5", "p6"]),
        (dict(PYRAMID="fpn_4stage"), ["p2", "p3", "p4", "p5", "p6"]),
    ],
)
def test_pyramids_by_name(words, levels):
    backbone = build_backbone(config(OUT_CHANNELS=16, **words))
    assert list(backbone(torch.randn(1, 3, 64, 96))) == list(backbone.output_shape()) == levels


def test_encoder_by_name():
    cfg = config()
    cfg.MODEL.BACKBONE.NAME = "build_vit_encoder"
    encoder = build_backbone(cfg)
    assert isinstance(encoder, ViT)
    assert encoder.output_shape()["last_feat"].channels == 192


def test_the_encoders_recipe():
    cfg = config(
        POSITIONS="sincos2d", BLOCK_NORM="batch", ACTIVATION="relu6", USE_REL_POS=False,
        MASK_RATIO=0.1, REGISTERS=4, STEM="conv",
    )  # fmt: skip
    cfg.MODEL.BACKBONE.NAME = "build_vit_encoder"
    encoder = build_backbone(cfg)
    assert isinstance(encoder.blocks[0].norm1, TokenBatchNorm)
    assert isinstance(encoder.blocks[0].mlp.act, torch.nn.ReLU6)
    assert isinstance(encoder.patch_embed, ConvStem)
    assert not encoder.pos_embed.requires_grad
    assert (encoder.mask_ratio, encoder.registers.shape[1]) == (0.1, 4)


def test_a_sizes_own_stem_stays():
    cfg = config(SIZE="vit-mini", IMG_SIZE=128)
    cfg.MODEL.BACKBONE.NAME = "build_vit_encoder"
    assert isinstance(build_backbone(cfg).patch_embed, ConvStem)
    for size, window in (("vit-mini", 4), ("vit-ti", 14), ("eva02-ti", 16)):
        cfg = config(SIZE=size, IMG_SIZE=128, USE_REL_POS=False)
        cfg.MODEL.BACKBONE.NAME = "build_vit_encoder"
        assert build_backbone(cfg).spec.window_size == window


def test_a_whole_detector():
    cfg = config(OUT_CHANNELS=64)
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    model = build_model(cfg).eval()
    (output,) = model([dict(image=torch.zeros(3, 100, 150), height=100, width=150)])
    assert "instances" in output


def test_an_unknown_word_is_an_error():
    with pytest.raises(ValueError, match="propagation='windows' is unknown"):
        build_backbone(config(PROPAGATION="windows"))
