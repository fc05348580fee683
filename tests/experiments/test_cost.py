"""Costs: attention counted, and three ways of counting agree."""

import pytest
import torch
from detectron2.config import instantiate
from torch.utils.flop_counter import FlopCounterMode

from backbones import build_encoder
from experiments import config, cost

STRATEGIES = ["none", "global", "conv", "shifted"]


def torch_macs(module, *inputs) -> int:
    """torch's own counter: 2 FLOPs are 1 MAC. The plain kernel, as it knows no CPU flash kernel."""
    with (
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        torch.no_grad(),
    ):
        module.eval()(*inputs)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("rel_pos", [False, True])
@pytest.mark.parametrize("propagation", STRATEGIES)
def test_encoder_macs_are_torchs(propagation, rel_pos):
    words = dict(img_size=320, propagation=propagation, use_rel_pos=rel_pos)
    image = torch.zeros(1, 3, 320, 320)
    textbook = build_encoder("vit-ti", attention="reference", **words)
    counted = cost.count(textbook, image)[""]
    assert counted.macs == pytest.approx(torch_macs(textbook, image), rel=0.005)
    # ... whichever kernel runs, and counting leaves it as it was.
    fused = build_encoder("vit-ti", **words)
    assert cost.count(fused, image)[""] == counted
    assert {block.attn.attention for block in fused.blocks} == {"fused"}


def test_global_attention_by_its_formula():
    """Tokens N, width E, depth D: patches, 12 N E^2 per block, 2 N^2 E for its attention."""
    E, D, N = 192, 12, 20 * 20
    encoder = build_encoder("vit-ti", img_size=320, propagation="global", count=D)
    counted = cost.count(encoder, torch.zeros(1, 3, 320, 320))[""]
    assert counted.macs == N * 3 * 16 * 16 * E + D * (12 * N * E**2 + 2 * N**2 * E)
    # Outputs of the patch conv, and per block of qkv, attention, proj, and the MLP's two layers.
    assert counted.activations == N * E * (1 + D * (3 + 1 + 1 + 4 + 1))


def test_all_global_is_not_the_cheapest():
    """fvcore alone counts attention as nothing: then it looks cheapest of all."""
    macs = []
    for count in (0, 1, 2):
        encoder = build_encoder("vit-ti", propagation="global", count=count, depth=2)
        macs.append(cost.count(encoder, torch.zeros(1, 3, 1024, 1024))[""].macs)
    # A global block costs 2 N^2 E for attention where windows cost 2 * 196 * 4900 E, but works on
    # 4,096 tokens where windows pad to 4,900.
    E = 192
    saved = 4 * E**2 * (4900 - 4096) + 2 * 196 * 4900 * E
    assert macs[1] - macs[0] == macs[2] - macs[1] == 2 * 4096**2 * E - saved > 0


@pytest.mark.parametrize("propagation", STRATEGIES)
def test_whole_mini_detector(propagation):
    cfg = config.load(config.base_path("mini", "vit-mini"))
    cfg.model.backbone.propagation = propagation
    cfg.model.backbone.attention = "reference"
    found = cost.detector_cost(cfg.model)
    detector = instantiate(cfg.model)
    assert found.size == (128, 128)
    assert found.detector.params == sum(p.numel() for p in detector.parameters())
    assert found.encoder.params == sum(p.numel() for p in detector.backbone.net.parameters())
    image = torch.zeros(1, 3, 128, 128)
    assert found.encoder == cost.count(detector.backbone.net, image)[""]
    assert found.detector.macs == pytest.approx(
        torch_macs(cost._Whole(detector, 50, 50), image), rel=0.005
    )


def test_whole_detector_of_the_paper():
    """ViT-B, 4 global blocks, relative positions: 0.8 T in Table 9, in MACs, for one image."""
    found = cost.detector_cost(config.load(config.base_path("coco", "vit-b")).model)
    assert found.size == (1024, 1024)
    assert found.detector.macs / 1e12 == pytest.approx(0.84, abs=0.01)
    assert found.encoder.macs / 1e12 == pytest.approx(0.483, abs=0.005)
