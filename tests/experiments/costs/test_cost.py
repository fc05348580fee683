"""Costs: three ways of counting agree, attention included, for every variant and detector."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from analysis import formulas
from backbones import SIZES, build_encoder
from experiments.costs import detector_cost as cost
from experiments.errors import UserError
from experiments.recipe import config
from tests.conftest import ROOT
from tests.experiments.costs.by_fvcore import fvcore_macs

VARIANTS = {
    "none": dict(propagation="none"),
    "global": dict(propagation="global"),
    "naive": dict(propagation="conv", conv_block="naive"),
    "basic": dict(propagation="conv", conv_block="basic"),
    "bottleneck": dict(propagation="conv", conv_block="bottleneck"),
    "shifted": dict(propagation="shifted"),
    "all global": dict(propagation="global", count=2),
}
# Of today's encoders one of each make: their sizes differ in numbers alone.
OF_TODAY = ["dinov2-g", "dinov3-s+", "eva02-b", "pe-spatial-g"]
KINDS = [*(size for size in SIZES if "vit-" in size), *OF_TODAY]
# Each detector and each encoder once.
MINI = ["mask_rcnn_vit_mini", "cascade_mask_rcnn_swin_mini", "retinanet_mvitv2_mini"]


def torch_macs(module, *inputs) -> int:
    """torch's own counter, of what is computed: 2 FLOPs are 1 MAC. The plain kernel for
    `scaled_dot_product_attention`, as it knows no CPU flash kernel."""
    with (
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        torch.no_grad(),
    ):
        module.eval()(*inputs)
    return counter.get_total_flops() // 2


def fitting(size, **words) -> dict:
    """Without what does not go together: relative positions beside rotary ones, registers that no
    block reads."""
    if "rope" in SIZES[size].get("positions", ""):
        words["use_rel_pos"] = False
    if words.get("propagation", "global") != "global":
        words["registers"] = 0
    if "count" in words:  # no block has windows
        positions = SIZES[size].get("positions", "learned")
        words["positions"] = positions.replace("coordinates=window", "coordinates=map")
    return words


def on_meta(size, **words):
    with torch.device("meta"):
        return build_encoder(size, **words)


def closed(name, /, **words) -> tuple[int, int]:
    found = formulas.total(formulas.encoder(**SIZES[name] | words).values())
    return found.params, found.macs


def counted(module, *inputs) -> tuple[int, int]:
    found = cost.count(module, *inputs)[""]
    return found.params, found.macs


# ---- Three ways --------------------------------------------------------------------------------


@pytest.mark.parametrize("rel_pos", [False, True])
@pytest.mark.parametrize("size", KINDS)
def test_formulas_are_the_count_for_every_variant(size, rel_pos):
    """1024 px: whole windows need padding. Two blocks, the second propagates."""
    for words in VARIANTS.values():
        words = fitting(size, **words, depth=2, use_rel_pos=rel_pos)
        encoder = on_meta(size, **words)
        expected = closed(size, size=(1024, 1024), **words)
        assert counted(encoder, torch.zeros(1, 3, 1024, 1024)) == expected, words


@pytest.mark.parametrize("size", KINDS)
def test_formulas_are_the_count_of_whole_encoders(size):
    words = fitting(size, use_rel_pos=True, img_size=1024)
    assert counted(on_meta(size, **words), torch.zeros(1, 3, 1024, 1024)) == closed(size, **words)


@pytest.mark.parametrize("rel_pos", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_fvcore_counts_the_same(variant, rel_pos):
    """Both kernels, where whole windows fit; tables of relative positions are resized."""
    check_counters(**VARIANTS[variant], use_rel_pos=rel_pos)


def check_counters(**words):
    """They agree on a small encoder, whichever kernel computes it."""
    words |= dict(depth=2, window_size=2, img_size=64)
    image = torch.zeros(1, 3, 96, 64)
    expected = closed("vit-ti", size=(96, 64), **words)
    for attention in ("reference", "fused"):
        encoder = build_encoder("vit-ti", attention=attention, **words)
        assert counted(encoder, image) == expected
        assert fvcore_macs(encoder, image)[""] == expected[1]
        assert torch_macs(encoder, image) == expected[1]
        assert {block.attn.attention for block in encoder.blocks} == {attention}


@pytest.mark.parametrize("size", KINDS)
def test_fvcore_counts_the_same_for_every_size(size):
    patch = SIZES[size].get("patch_size", 16)
    words = fitting(size, depth=2, window_size=2, img_size=4 * patch, use_rel_pos=True)
    encoder = on_meta(size, **words).to_empty(device="cpu")
    image = torch.zeros(1, 3, 4 * patch, 6 * patch)
    expected = closed(size, size=tuple(image.shape[2:]), **words)
    assert fvcore_macs(encoder, image)[""] == expected[1]
    assert counted(encoder, image) == expected


@pytest.mark.parametrize(
    "words",
    [
        dict(positions="rope", registers=3),
        dict(positions="learned+rope(unit=token,coordinates=window)", propagation="shifted"),
        dict(mlp="swiglu(hidden=100,norm=true)", propagation="conv"),
        dict(mlp="mlp(hidden=100)", qkv_bias="qv", qk_norm=True, layer_scale=1.0, count=2),
    ],
)
def test_three_counters_agree_on_todays_words(words):
    check_counters(**words)


def test_the_fused_kernel_does_no_linear_layers_on_padding():
    """5 x 3 tokens in windows of 2 x 2: 24 with padding. It takes one padding token's q, k, v."""
    words = dict(depth=2, propagation="shifted", window_size=2, use_rel_pos=True)
    image, E = torch.zeros(1, 3, 80, 48), 192
    encoder = build_encoder("vit-ti", **words)
    textbook = closed("vit-ti", size=(80, 48), **words)[1]
    saved = 2 * (4 * E**2 * (24 - 15) - 3 * E**2)
    assert fvcore_macs(encoder, image)[""] == textbook - saved
    assert torch_macs(encoder, image) == textbook - saved
    with cost.textbook_attention(encoder):
        assert fvcore_macs(encoder, image)[""] == textbook
        assert torch_macs(encoder, image) == textbook


def test_fvcore_alone_makes_all_global_the_cheapest():
    """It counts fused attention as nothing, torch's as well as ours; with handles, it counts."""

    class Attention(nn.Module):
        def forward(self, x_MND):
            return F.scaled_dot_product_attention(x_MND, x_MND, x_MND)

    x_MND = torch.zeros(1, 3, 50, 8)
    assert FlopCountAnalysis(Attention(), x_MND).unsupported_ops_warnings(False).total() == 0
    products = 2 * 50 * 50 * 3 * 8
    assert fvcore_macs(Attention(), x_MND)[""] == products
    assert cost.count(Attention(), x_MND)[""].macs == products

    image, naive, macs = torch.zeros(1, 3, 480, 480), [], []
    for count in (0, 1, 2):
        encoder = build_encoder("vit-ti", propagation="global", count=count, depth=2).eval()
        analysis = FlopCountAnalysis(encoder, image).unsupported_ops_warnings(False)
        naive.append(analysis.uncalled_modules_warnings(False).total())
        macs.append(fvcore_macs(encoder, image)[""])
    assert naive[0] > naive[1] > naive[2]
    assert macs[0] < macs[1] < macs[2]


def test_torchs_counter_knows_the_backward_pass_of_the_fused_kernel():
    """Four products of scores' size in the textbook form; the fused kernel makes scores again."""
    N, E, counts = 28 * 28, 192, {}
    for attention in ("reference", "fused"):
        words = dict(depth=1, count=1, img_size=448, use_rel_pos=True, attention=attention)
        loss = build_encoder("vit-ti", **words)(torch.zeros(1, 3, 448, 448))["last_feat"].sum()
        with FlopCounterMode(display=False) as counter:
            loss.backward()
        counts[attention] = counter.get_total_flops() // 2
    assert counts["fused"] - counts["reference"] == N * E * (N + 2 * 28)


@pytest.mark.slow
@pytest.mark.parametrize("size", KINDS)
def test_every_variant_at_full_depth(size):
    for words in VARIANTS.values():
        if "count" in words:
            words = dict(words, count=SIZES[size]["depth"])
        for rel_pos in (False, True):
            words = fitting(size, **words | dict(use_rel_pos=rel_pos))
            encoder = on_meta(size, **words)
            expected = closed(size, size=(1024, 1024), **words)
            assert counted(encoder, torch.zeros(1, 3, 1024, 1024)) == expected, words


@pytest.mark.slow
@pytest.mark.parametrize("propagation", ["none", "global", "conv", "shifted"])
def test_fvcore_counts_the_same_at_1024_px(propagation):
    encoder = build_encoder("vit-b", propagation=propagation, use_rel_pos=True)
    image = torch.zeros(1, 3, 1024, 1024)
    expected = closed("vit-b", propagation=propagation, use_rel_pos=True)
    assert counted(encoder, image) == expected
    with cost.textbook_attention(encoder):
        assert fvcore_macs(encoder, image)[""] == expected[1]


# ---- What count tells --------------------------------------------------------------------------


def test_modules_by_their_names():
    encoder = on_meta("vit-ti", depth=2, count=1)
    costs = cost.count(encoder, torch.zeros(1, 3, 448, 448))
    assert set(costs) == {name for name, _ in encoder.named_modules()}
    N, E = 28 * 28, 192
    assert costs["blocks.1.mlp"].macs == costs["blocks.0.mlp"].macs == 8 * N * E**2
    assert costs["blocks.1.attn"].macs == 4 * N * E**2 + 2 * N**2 * E
    assert costs["blocks.0.norm1"] == cost.Cost(2 * E, 0, 0)
    parts = [costs[f"blocks.{i}"].macs for i in range(2)]
    assert costs["blocks"].macs == sum(parts) == costs[""].macs - costs["patch_embed"].macs
    assert costs["blocks"].params == costs["blocks.0"].params + costs["blocks.1"].params


def test_activations_of_global_attention():
    """Outputs of the patch conv, and per block of qkv, attention, proj, and the MLP's two layers.
    Scores are none, relative positions have a term per row and per column, head and token."""
    E, D, heads, N = 192, 12, 3, 20 * 20
    image = torch.zeros(1, 3, 320, 320)
    for rel_pos, terms in ((False, 0), (True, heads * N * (20 + 20))):
        words = dict(img_size=320, propagation="global", count=D, use_rel_pos=rel_pos)
        found = cost.count(on_meta("vit-ti", **words), image)[""]
        assert found.activations == N * E * (1 + D * (3 + 1 + 1 + 4 + 1)) + D * terms


def test_counting_leaves_the_module_alone():
    encoder = build_encoder("vit-ti", depth=2).train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    cost.count(encoder, torch.zeros(1, 3, 64, 64))
    assert encoder.training
    assert {block.attn.attention for block in encoder.blocks} == {"fused"}
    assert all(torch.equal(t, before[name]) for name, t in encoder.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in encoder.modules())


# ---- Detectors ---------------------------------------------------------------------------------


def mini(name):
    return config.load(ROOT / "configs" / "mini" / f"{name}.py").model


@pytest.mark.parametrize("name", MINI)
def test_detectors_are_what_torchs_counter_says(name):
    """That computes them on the CPU."""
    model = mini(name)
    found = cost.detector_cost(model)
    assert found.size == (128, 128)
    detector = instantiate(model)
    encoder = getattr(detector.backbone, "net", None) or detector.backbone.bottom_up
    image = torch.zeros(1, 3, 128, 128)
    assert found.encoder == cost.count(encoder, image)[""]
    assert found.encoder.params == sum(p.numel() for p in encoder.parameters())
    assert found.detector.params == sum(p.numel() for p in detector.parameters())
    with cost.textbook_attention(detector):
        assert found.detector.macs == torch_macs(cost._Whole(detector), image)
        assert found.encoder.macs == torch_macs(encoder, image)


def test_activations_of_swin_are_the_outputs_of_its_layers():
    model = mini("mask_rcnn_swin_mini")
    swin, put_out = instantiate(model.backbone.bottom_up).eval(), []
    for name, module in swin.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(lambda m, args, out: put_out.append(out.numel()))
        if name.endswith("attn.proj"):  # reads what attention puts out
            module.register_forward_hook(lambda m, args, out: put_out.append(args[0].numel()))
    image = torch.zeros(1, 3, 128, 128)
    swin(image)
    expected = sum(put_out)
    assert cost.count(swin, image)[""].activations == expected


@pytest.mark.parametrize(
    ("propagation", "pyramid"), [("conv", "simple"), ("shifted", "none"), ("none", "fpn_4stage")]
)
def test_other_backbones_of_a_detector(propagation, pyramid):
    model = mini("mask_rcnn_vit_mini")
    model.backbone.update(propagation=propagation, pyramid=pyramid)
    if pyramid == "none":
        model.proposal_generator.in_features = ["p3"]
        model.roi_heads.update(box_in_features=["p3"], mask_in_features=None)
    found, detector = cost.detector_cost(model), instantiate(model)
    with cost.textbook_attention(detector):
        macs = torch_macs(cost._Whole(detector), torch.zeros(1, 3, 128, 128))
    assert found.detector.macs == macs


def test_another_image_size():
    model = mini("mask_rcnn_vit_mini")
    small, large = cost.detector_cost(model), cost.detector_cost(model, (128, 256))
    assert large.size == (128, 256)
    assert large.detector.params == small.detector.params
    assert large.encoder.macs > 2 * small.encoder.macs  # global attention grows faster


def test_what_cannot_be_counted_is_said():
    with pytest.raises(UserError, match="model Linear cannot be counted: RetinaNet can"):
        cost.detector_cost(L(nn.Linear)(in_features=2, out_features=2))
    model = mini("mask_rcnn_swin_mini")
    model.backbone.square_pad = 0
    with pytest.raises(UserError, match="need an image size"):
        cost.detector_cost(model)
