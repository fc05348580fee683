"""The pyramids of Table 1: levels, what they are made from, and detectron2's FPN as the oracle."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7

from backbones import PYRAMIDS, FeaturePyramid, LastMapFPN, StageFPN, ViT, build_backbone

WORDS = ["simple", "none", "avg_pool", "fpn_last_map", "fpn_4stage"]
TINY = dict(embed_dim=32, depth=6, num_heads=2, window_size=5, img_size=256)
SCALES = (4.0, 2.0, 1.0, 0.5)


def tiny(pyramid, scale_factors=SCALES, stages=None, **words) -> FeaturePyramid:
    torch.manual_seed(0)
    neck = PYRAMIDS.get(pyramid)
    if stages is None:
        stages = len(scale_factors) if neck.reads_stages else 1
    return neck(ViT(**TINY, stages=stages), "last_feat", 8, scale_factors, **words)


def random_weights(module: torch.nn.Module) -> None:
    """Weights under which no layer is the identity, as new norms are."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)


# Levels


@pytest.mark.parametrize("size", [(250, 199), (33, 64), (256, 256)])
@pytest.mark.parametrize("scales", [SCALES, (4.0, 2.0), (2.0, 1.0), (1.0, 0.5), (1.0,)])
@pytest.mark.parametrize("pyramid", WORDS)
def test_levels_align_with_their_strides(pyramid, scales, size):
    neck = tiny(pyramid, scales)
    strides = [int(16 / scale) for scale in scales] if pyramid != "none" else [16]
    assert [shape.stride for shape in neck.output_shape().values()] == strides
    assert neck.size_divisibility == max(16, strides[-1])
    H, W = (-(-s // neck.size_divisibility) * neck.size_divisibility for s in size)
    levels = neck(torch.randn(2, 3, *size))
    assert {name: tuple(level.shape) for name, level in levels.items()} == {
        f"p{stride.bit_length() - 1}": (2, 8, H // stride, W // stride) for stride in strides
    }


@pytest.mark.parametrize(
    ("pyramid", "strides"),
    [(word, {"p2": 4, "p3": 8}) for word in WORDS if word != "none"] + [("none", {"p3": 8})],
)
def test_mini(pyramid, strides):
    """The mini scale's settings: patches of 8 px, two levels."""
    backbone = build_backbone(
        "vit-mini", pyramid, out_channels=16, scale_factors=(2.0, 1.0), top_block="none"
    )
    assert {name: shape.stride for name, shape in backbone.output_shape().items()} == strides
    levels = backbone(torch.randn(1, 3, 125, 90))
    for name, stride in strides.items():
        assert levels[name].shape == (1, 16, 128 // stride, 96 // stride)


@pytest.mark.parametrize("pyramid", WORDS)
def test_padding_in_the_neck_is_padding_the_image(pyramid):
    neck = tiny(pyramid, square_pad=320).eval()
    side = neck.size_divisibility
    assert neck.padding_constraints == {"size_divisibility": side, "square_size": 320}
    image = torch.randn(1, 3, 90, 70)
    padded = F.pad(image, (0, -70 % side, 0, -90 % side))
    torch.testing.assert_close(neck(image), neck(padded), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("word", "strides", "cls"),
    [
        ("none", {}, None),
        ("max_pool", {"p6": 64}, LastLevelMaxPool),
        ("p6p7", {"p6": 64, "p7": 128}, lambda: LastLevelP6P7(16, 16, "p5")),
    ],
)
@pytest.mark.parametrize("pyramid", [word for word in WORDS if word != "none"])
def test_top_blocks_are_detectron2s(pyramid, word, strides, cls):
    backbone = build_backbone("vit-ti", pyramid, out_channels=16, top_block=word)
    levels = backbone(torch.randn(1, 3, 64, 160))
    shapes = backbone.output_shape()
    assert list(levels) == list(shapes) == ["p2", "p3", "p4", "p5", *strides]
    assert {name: shapes[name].stride for name in strides} == strides
    if strides:
        top = cls()
        top.load_state_dict(backbone.top_block.state_dict())
        for name, expected in zip(strides, top(levels["p5"]), strict=True):
            torch.testing.assert_close(levels[name], expected, rtol=0, atol=0)


@pytest.mark.parametrize("pyramid", WORDS)
def test_training_reaches_every_parameter(pyramid):
    neck = tiny(pyramid).train()
    random_weights(neck)
    levels = neck(torch.randn(2, 3, 96, 128))
    sum((level * torch.randn_like(level)).sum() for level in levels.values()).backward()
    for name, parameter in neck.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("pyramid", WORDS)
def test_convs_have_a_bias_only_without_norm(pyramid):
    convs = [name for name, module in tiny(pyramid).named_modules() if hasattr(module, "norm")]
    with_bias = tiny(pyramid, norm="")
    assert len(convs) == {"none": 2, "avg_pool": 2}.get(pyramid, 8)
    assert all(tiny(pyramid).get_submodule(name).bias is None for name in convs)
    assert all(with_bias.get_submodule(name).bias is not None for name in convs)
    assert with_bias(torch.randn(1, 3, 32, 32))["p4"].shape == (1, 8, 2, 2)


# What levels are made from


class Given(Backbone):
    """Four maps of stride 16 that need no image."""

    def __init__(self, dim: int, size: tuple[int, int]):
        super().__init__()
        self.names = ("stage1_feat", "stage2_feat", "stage3_feat", "last_feat")
        self.maps = [torch.randn(1, dim, *size, requires_grad=True) for _ in self.names]
        self.dim = dim

    def output_shape(self):
        return {name: ShapeSpec(channels=self.dim, stride=16) for name in self.names}

    def forward(self, x):
        return dict(zip(self.names, self.maps, strict=True))


@pytest.mark.parametrize(
    ("pyramid", "reads"),
    [
        ("simple", {"p2": [3], "p3": [3], "p4": [3], "p5": [3]}),
        ("none", {"p4": [3]}),
        ("avg_pool", {"p2": [3], "p3": [3], "p4": [3], "p5": [3]}),
        ("fpn_last_map", {"p2": [3], "p3": [3], "p4": [3], "p5": [3]}),
        ("fpn_4stage", {"p2": [0, 1, 2, 3], "p3": [1, 2, 3], "p4": [2, 3], "p5": [3]}),
    ],
)
def test_which_stages_a_level_reads(pyramid, reads):
    """Of FPN's levels each reads its own stage and, top down, the later ones."""
    net = Given(16, (4, 6))
    neck = PYRAMIDS.get(pyramid)(net, "last_feat", 8, SCALES)
    levels = neck(torch.empty(1, 3, 64, 96))
    for name, level in levels.items():
        gradients = torch.autograd.grad(
            (level * torch.randn_like(level)).sum(),
            net.maps,
            retain_graph=True,
            materialize_grads=True,
        )
        assert [i for i, gradient in enumerate(gradients) if gradient.any()] == reads[name]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("stages", "ends"), [(1, [6]), (2, [3, 6]), (4, [1, 3, 4, 6])])
def test_stage_maps_are_those_of_a_shorter_encoder(stages, ends, checkpointing):
    """6 blocks in 4 stages as the "even" placement divides them: 1, 2, 1 and 2 blocks."""
    net = ViT(**TINY, stages=stages, propagation="none", use_act_checkpoint=checkpointing)
    random_weights(net)
    image = torch.randn(1, 3, 80, 110)
    features = net.train()(image)
    assert list(features) == [*(f"stage{i}_feat" for i in range(1, stages)), "last_feat"]
    assert features.keys() == net.output_shape().keys()
    for feature, depth in zip(features.values(), ends, strict=True):
        short = ViT(**TINY | dict(depth=depth), propagation="none")
        short.load_state_dict(
            {k: v for k, v in net.state_dict().items() if k in dict(short.state_dict())}
        )
        torch.testing.assert_close(feature, short(image)["last_feat"], rtol=0, atol=0)


def test_stages_do_not_change_the_state_dict():
    plain, staged = ViT(**TINY), ViT(**TINY, stages=4)
    assert list(plain.state_dict()) == list(staged.state_dict())


# Each pyramid against its definition


@pytest.mark.parametrize("norm", ["LN", ""])
@pytest.mark.parametrize(("cls", "first"), [(LastMapFPN, 3), (StageFPN, 0)])
def test_fpn_is_detectron2s(cls, first, norm):
    """On maps resized by the operations of appendix A.2: outputs and all gradients."""
    net = Given(16, (4, 6))
    ours = cls(net, "last_feat", 8, SCALES, top_block=LastLevelMaxPool(), norm=norm)
    random_weights(ours)
    maps = [net.maps[max(i, first)] for i in range(4)]
    quarter, eighth = ours.fpn_resize2, ours.fpn_resize3
    if norm:
        normed = F.layer_norm(
            quarter[0](maps[0]).movedim(1, -1), (8,), quarter[1].weight, quarter[1].bias, 1e-6
        ).movedim(-1, 1)
    else:
        normed = quarter[0](maps[0])
    resized = [
        quarter[3](F.gelu(normed)),
        eighth[0](maps[1]),
        maps[2],
        F.max_pool2d(maps[3], 2),
    ]

    class Resized(Backbone):
        def output_shape(self):
            return {
                f"res{i}": ShapeSpec(channels=x.shape[1], stride=2**i)
                for i, x in enumerate(resized, start=2)
            }

        def forward(self, x):
            return {f"res{i}": x for i, x in enumerate(resized, start=2)}

    theirs = FPN(Resized(), list(Resized().output_shape()), 8, norm, LastLevelMaxPool())
    state = {k: v for k, v in ours.state_dict().items() if "resize" not in k}
    theirs.load_state_dict(state, strict=True)
    assert [c.kernel_size for c in (quarter[0], quarter[3], eighth[0])] == [(2, 2)] * 3

    levels, expected = ours(torch.empty(1, 3, 64, 96)), theirs(None)
    assert levels.keys() == expected.keys()
    torch.testing.assert_close(levels, expected, rtol=1e-5, atol=1e-5)
    weights = [torch.randn_like(level) for level in levels.values()]
    gradients = [
        torch.autograd.grad(
            list(outputs.values()),
            [*net.maps[first:], *(fpn.get_parameter(name) for name in state)],
            weights,
            retain_graph=True,
        )
        for fpn, outputs in ((ours, levels), (theirs, expected))
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())


def test_fpn_starts_as_detectron2s():
    net = Given(16, (4, 6))
    torch.manual_seed(0)
    ours = LastMapFPN(net, "last_feat", 8, (1.0,), norm="")
    torch.manual_seed(0)
    theirs = FPN(net, ["last_feat"], 8)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


def test_average_pooling_explicitly():
    """Each coarser level is the finest map's mean over 2x2, 4x4, 8x8 squares, then shared convs."""
    net = Given(16, (4, 6))
    neck = PYRAMIDS.get("avg_pool")(net, "last_feat", 8, SCALES)
    simple = PYRAMIDS.get("simple")(net, "last_feat", 8, SCALES)
    random_weights(neck)
    finest_level = dict(enumerate([*neck.finest, *neck.project]))
    simple.simfp_2.load_state_dict(
        {f"{i}.{k}": v for i, m in finest_level.items() for k, v in m.state_dict().items()}
    )
    levels = neck(torch.empty(1, 3, 64, 96))
    torch.testing.assert_close(levels["p2"], simple(torch.empty(1, 3, 64, 96))["p2"])

    finest = neck.finest(net.maps[-1])
    for name, side in (("p3", 2), ("p4", 4), ("p5", 8)):
        H, W = 16 // side, 24 // side
        mean = finest.reshape(1, 4, H, side, W, side).mean((3, 5))
        torch.testing.assert_close(levels[name], neck.project(mean))


def test_no_pyramid_is_the_simple_pyramids_level_of_that_scale():
    none, simple = tiny("none"), tiny("simple")
    simple.load_state_dict(none.state_dict(), strict=False)
    image = torch.randn(1, 3, 96, 128)
    torch.testing.assert_close(none(image), {"p4": simple(image)["p4"]}, rtol=0, atol=0)
    assert none(torch.randn(1, 3, 90, 110))["p4"].shape == (1, 8, 6, 7)


def deconv(dim: int, out: int) -> int:
    return 4 * dim * out + out


def conv(dim: int, side: int) -> int:
    """To 256 channels, without a bias, with LN's weight and bias."""
    return side * side * dim * 256 + 2 * 256


C = 768
QUARTER = deconv(C, C // 2) + 2 * (C // 2) + deconv(C // 2, C // 4)
EIGHTH = deconv(C, C // 2)
FOUR_LEVELS = (
    QUARTER + EIGHTH + conv(C // 4, 1) + conv(C // 2, 1) + 2 * conv(C, 1) + 4 * conv(256, 3)
)


@pytest.mark.parametrize(
    ("pyramid", "expected"),
    [
        ("simple", FOUR_LEVELS),
        ("fpn_last_map", FOUR_LEVELS),
        ("fpn_4stage", FOUR_LEVELS),
        ("none", conv(C, 1) + conv(256, 3)),
        ("avg_pool", QUARTER + conv(C // 4, 1) + conv(256, 3)),
    ],
)
def test_parameters_of_vit_b(pyramid, expected):
    with torch.device("meta"):
        backbone = build_backbone("vit-b", pyramid, top_block="none")
    neck = {k: v for k, v in backbone.named_parameters() if not k.startswith("net.")}
    assert sum(p.numel() for p in neck.values()) == expected


# Words that do not fit


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (dict(pyramid="fpn"), "pyramid='fpn' is unknown"),
        (dict(top_block="maxpool"), "top_block='maxpool' is unknown: did you mean 'max_pool'?"),
        (dict(top_block=True), "top_block=True is unknown: allowed are max_pool, p6p7, none"),
        (
            dict(pyramid="none", top_block="p6p7"),
            "top_block=LastLevelP6P7 does not fit: it reads p5, the last level is p4; leave it out",
        ),
        (
            dict(scale_factors=(2.0, 1.0)),
            "top_block=LastLevelMaxPool does not fit: it reads p5, the last level is p4",
        ),
        (dict(pyramid="avg_pool", scale_factors=(4.0, 1.0)), "each must be half the one before"),
        (dict(pyramid="fpn_4stage", scale_factors=()), "stages=0 does not fit"),
        (dict(scale_factors=()), r"scale_factors=\(\) do not fit"),
        (dict(pyramid="avg_pool", scale_factors=(8.0, 4.0)), r"scale_factors: 8\.0 is unknown"),
        (
            dict(pyramid="fpn_4stage", stages=2),
            r"scale_factors=\(4.0, 2.0, 1.0, 0.5\) do not fit an encoder of stages=2: build it "
            "with stages=4",
        ),
        (dict(stages=13), r"stages=13 does not fit: an encoder of depth=12 allows 1\.\.12"),
        (dict(stages=0), "stages=0 does not fit: a whole number of at least 1 does"),
        (dict(out_channels=0), "out_channels=0 does not fit"),
    ],
)
def test_words_that_do_not_fit(words, message):
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match=message.replace("?", r"\?")) as error,
    ):
        build_backbone(**words)
    assert "\n" not in str(error.value)


def test_a_map_the_encoder_does_not_have():
    with pytest.raises(ValueError, match="in_feature='last' is unknown: did you mean 'last_feat'"):
        PYRAMIDS.get("simple")(ViT(**TINY), "last", 8, SCALES)
