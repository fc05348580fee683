"""What a training step costs: the count on the meta device is that of a step that is computed."""

import pytest
import torch
from detectron2.config import instantiate

from experiments.costs import detector_cost as cost
from experiments.costs.training_cost import count_step, training_step
from experiments.recipe import config
from tests.conftest import ROOT

# Each detector and each encoder once.
MINI = ["mask_rcnn_vit_mini", "cascade_mask_rcnn_swin_mini", "retinanet_mvitv2_mini"]
SIZE = (128, 128)


def load(path):
    return config.load(ROOT / "configs" / f"{path}.py").model


def bytes_and_macs(step):
    return step.peak_bytes, step.macs


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("name", MINI)
def test_a_computed_step_takes_the_same_bytes_and_macs(name, amp):
    """To the byte. Attention as written: its kernel on a CPU is not that of a GPU."""
    model = load(f"mini/{name}")
    detector = instantiate(model)
    with cost.textbook_attention(detector):
        computed = count_step(detector, torch.rand(2, 3, *SIZE), amp)
    counted = training_step(model, 2, SIZE, amp, textbook=True)
    assert bytes_and_macs(counted) == bytes_and_macs(computed)
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for p in detector.backbone.parameters()
    )


@pytest.mark.parametrize("amp", [False, True])
def test_a_step_with_checkpointing_too(amp):
    model = load("mini/mask_rcnn_vit_mini")
    detector = instantiate(model)
    detector.backbone.net.use_act_checkpoint = True
    with cost.textbook_attention(detector):
        computed = count_step(detector, torch.rand(2, 3, *SIZE), amp)
    counted = training_step(model, 2, SIZE, amp, checkpointing=True, textbook=True)
    assert bytes_and_macs(counted) == bytes_and_macs(computed)


def test_checkpointing_keeps_less_and_computes_more():
    model = load("coco/mask_rcnn_vit_b")
    kept = training_step(model, 1, (1024, 1024), amp=True, checkpointing=False)
    again = training_step(model, 1, (1024, 1024), amp=True, checkpointing=True)
    assert again.peak_bytes < kept.peak_bytes / 2
    # The encoder's forward pass once more, a quarter of all passes then, less the heads' share.
    assert 1.15 < again.macs / kept.macs < 4 / 3


def test_no_kernel_keeps_tokens_x_tokens():
    """With all blocks global and relative positions. The textbook form keeps scores in bfloat16."""
    model = load("coco/mask_rcnn_vit_b")
    model.backbone.update(depth=4, count=4, use_rel_pos=True)
    small, large = (training_step(model, 1, (side, side), amp=True) for side in (512, 1024))
    textbook = training_step(model, 1, (1024, 1024), amp=True, textbook=True)
    assert large.peak_bytes < 4 * small.peak_bytes  # as the tokens
    assert textbook.peak_bytes > large.peak_bytes + 4 * 12 * 4096**2 * 2


def test_masks_of_shifted_windows_are_kept():
    """As a bias in bfloat16, of 25 windows of 14 x 14 tokens, by each of two shifted blocks."""
    model = load("coco/mask_rcnn_vit_b")
    model.backbone.update(depth=4, use_rel_pos=False)
    peaks = {}
    for model.backbone.propagation in ("none", "shifted"):
        step = training_step(model, 1, (1024, 1024), amp=True)
        peaks[model.backbone.propagation] = step.peak_bytes
    assert peaks["shifted"] - peaks["none"] >= 2 * 25 * 196**2 * 2


def test_memory_is_linear_in_the_images():
    model = load("coco/mask_rcnn_vit_b")
    peaks = [training_step(model, n, (512, 512), True).peak_bytes for n in (1, 2, 4)]
    assert peaks[2] == pytest.approx(peaks[1] + 2 * (peaks[1] - peaks[0]), rel=0.01)


def test_counting_leaves_no_trace():
    detector = instantiate(load("mini/mask_rcnn_vit_mini"))
    first, second = (count_step(detector, torch.rand(1, 3, *SIZE), True) for _ in range(2))
    assert first == second
    assert not any("forward" in vars(block) for block in detector.backbone.net.blocks)
