"""Which block does what, for every strategy, count and placement; and words that do not fit."""

import re

import pytest
import torch

from backbones import (
    CONV_BLOCKS,
    SIZES,
    Encoder,
    EncoderSpec,
    Partition,
    PatchEmbed,
    ViT,
    Windows,
    build_backbone,
    build_encoder,
)
from backbones.block import BlockParts, Mlp
from backbones.weights import load_encoder


def encoder(**words) -> ViT:
    with torch.device("meta"):
        return build_encoder(**words)


def marked(plan) -> dict[str, list[int]]:
    """Block indexes per word, without plain window blocks."""
    return {word: [i for i, w in enumerate(plan) if w == word] for word in set(plan) - {"window"}}


@pytest.mark.parametrize(
    ("size", "even"),
    [
        # 0-based indexes of detectron2's released configs
        ("vit-b", [2, 5, 8, 11]),
        ("vit-l", [5, 11, 17, 23]),
        ("vit-h", [7, 15, 23, 31]),
        ("vit-mini", [1, 3, 5]),
    ],
)
def test_default_propagation_blocks(size, even):
    assert marked(encoder(size=size, propagation="global").plan) == {"global": even}
    assert marked(encoder(size=size, propagation="conv").plan) == {"window + residual": even}
    assert marked(encoder(size=size, propagation="none").plan) == {}
    every_second = list(range(1, SIZES[size]["depth"], 2))
    assert marked(encoder(size=size, propagation="shifted").plan) == {
        "shifted window": every_second
    }


@pytest.mark.parametrize(
    ("placement", "count", "blocks"),
    [
        ("first", 4, [0, 1, 2, 3]),
        ("last", 4, [8, 9, 10, 11]),
        ("even", 2, [5, 11]),
        ("even", 12, list(range(12))),
        ("even", "all", list(range(12))),
        ("even", 5, [1, 3, 6, 8, 11]),
        ("last", 0, []),
    ],
)
def test_count_and_placement(placement, count, blocks):
    plan = encoder(size="vit-b", propagation="global", count=count, placement=placement).plan
    assert [i for i, word in enumerate(plan) if word == "global"] == blocks


@pytest.mark.parametrize(
    ("word", "kernels"), [("naive", [3]), ("basic", [3, 3]), ("bottleneck", [1, 3, 1])]
)
def test_conv_blocks_are_the_papers_and_start_as_identity(word, kernels):
    block = CONV_BLOCKS.get(word)(32)
    convs = [m for m in block.children() if isinstance(m, torch.nn.Conv2d)]
    assert [conv.kernel_size[0] for conv in convs] == kernels
    x = torch.randn(2, 32, 9, 7)
    torch.testing.assert_close(block(x), x, rtol=0, atol=0)
    torch.nn.init.ones_(block.get_submodule(f"norm{len(kernels)}").weight)
    assert not torch.allclose(block(x), x)


@pytest.mark.parametrize("propagation", ["none", "global", "conv", "shifted"])
@pytest.mark.parametrize(
    "size", [*(s for s in SIZES if "vit-" in s), "dinov2-g", "dinov3-s+", "eva02-b", "pe-spatial-g"]
)
def test_every_size_and_strategy_gives_the_promised_map(size, propagation):
    net = encoder(size=size, propagation=propagation, registers=0)
    stride = net.output_shape()["last_feat"].stride
    image = torch.empty(1, 3, 12 * stride, 7 * stride, device="meta")
    assert net(image)["last_feat"].shape == (1, net.output_shape()["last_feat"].channels, 12, 7)


def test_a_word_sets_arguments_of_its_entry():
    """Beside the encoder's own word for the same, over it."""
    for words in (
        dict(propagation="conv", conv_block="naive"),
        dict(propagation="conv(conv_block=naive)"),
        dict(propagation="conv(conv_block='naive')", conv_block="basic"),
    ):
        net = encoder(**words)
        assert "blocks.2.residual.conv1.weight" in net.state_dict()
        assert "blocks.2.residual.conv2.weight" not in net.state_dict()
    assert encoder(block_norm="layer(eps=1e-5)").blocks[0].norm1.eps == 1e-5
    assert encoder().blocks[0].norm1.eps == 1e-6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (dict(size="vit-bb"), "size='vit-bb' is unknown: did you mean 'vit-b'?"),
        (dict(propagation="globl"), "propagation='globl' is unknown: did you mean 'global'?"),
        (dict(propagation="conv", conv_block="bottelneck"), "did you mean 'bottleneck'?"),
        (dict(conv_block="dense"), "conv_block='dense' is unknown"),
        (dict(propagation="conv(conv_block=dense)"), "conv_block='dense' is unknown"),
        (
            dict(propagation="conv(conv_blok=basic)"),
            r"propagation='conv\(conv_blok=basic\)': argument='conv_blok' is unknown: did you mean "
            "'conv_block'?",
        ),
        (dict(propagation="global(size=7)"), r"'global\(size=7\)': global has no arguments"),
        (dict(propagation="globl(size=7)"), "globl.* is unknown: did you mean 'global'?"),
        (dict(propagation="conv(basic)"), r"'conv\(basic\)' cannot be read: conv\(name=value"),
        (dict(propagation="conv(conv_block=basic"), "cannot be read"),
        (dict(propagation="conv(conv_block=__import__('os'))"), "cannot be read"),
        (dict(propagation="conv(encoder=1)"), "argument='encoder' is unknown"),
        (dict(block_norm="layer(eps=small)"), "eps='small' does not fit: a number"),
        (dict(placement="middle"), "placement='middle' is unknown"),
        (dict(stem="convs"), "stem='convs' is unknown: did you mean 'conv'?"),
        (dict(count=13), "count=13 does not fit: an encoder of depth=12 allows 0..12"),
        (dict(count=-1), "count=-1 does not fit: a whole number of at least 0 does"),
        (dict(count="al"), "count='al' does not fit: a whole number or 'all' does"),
        (dict(propagation="none", count="all"), "count='all' does not fit propagation='none'"),
        (dict(propagation="none", count=2), "count=2 does not fit propagation='none'"),
        (dict(num_heads=7), "num_heads=7 does not fit: it must divide embed_dim=768"),
        (dict(attention="fusd"), "attention='fusd' is unknown: did you mean 'fused'?"),
        (dict(window_size=1, propagation="shifted"), "window_size=1 is too small for shifted"),
        (dict(img_size=1000), "img_size=1000 does not fit: a multiple of patch_size=16"),
        (dict(img_size=8), "img_size=8 does not fit: a whole number of at least 16"),
        (dict(pretrain_img_size=8), "pretrain_img_size=8 does not fit"),
        (dict(drop_path_rate=1), "drop_path_rate=1 does not fit: a number of at least 0 and below"),
        (dict(mlp_ratio=0), "mlp_ratio=0 does not fit: a number of at least"),
        (dict(norm_layer="LN"), "norm_layer='LN' does not fit: a class or function does"),
        (dict(act_layer=torch.nn.GELU()), "act_layer=GELU.* does not fit"),
        (dict(stem="conv", embed_dim=4, num_heads=1), "embed_dim=4 does not fit stem='conv'"),
        (dict(stem="conv", patch_size=12, img_size=1020), "patch_size=12 does not fit stem='conv'"),
        (dict(window_block_indexes=(0,), propagation="conv"), "contradict window_block_indexes"),
        (
            dict(window_block_indexes=(0, 12)),
            r"window_block_indexes=\(0, 12\) does not fit: indexes in 0..11 do",
        ),
        (dict(window_block_indexes=3), "window_block_indexes=3 does not fit"),
        (dict(window_block_indexes=(), placement="first"), "placement='first' contradict"),
    ],
)
def test_words_that_do_not_fit(words, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        encoder(**words)


@pytest.mark.parametrize("value", [0, -3, 2.0, "2", None, True, (64, 64)])
@pytest.mark.parametrize(
    "argument", ["patch_size", "in_chans", "embed_dim", "depth", "num_heads", "window_size"]
)
def test_sizes_that_are_no_whole_number(argument, value):
    message = f"{argument}={value!r} does not fit: a whole number of at least 1 does"
    with pytest.raises(ValueError, match=re.escape(message)):
        encoder(**{argument: value})


@pytest.mark.parametrize("value", [-0.5, "0.1", None, float("nan"), float("inf")])
@pytest.mark.parametrize("argument", ["mlp_ratio", "drop_path_rate"])
def test_rates_that_are_no_number(argument, value):
    with pytest.raises(ValueError, match=re.escape(f"{argument}={value!r} does not fit")):
        encoder(**{argument: value})


def test_necks_that_do_not_fit():
    with torch.device("meta"):
        with pytest.raises(ValueError, match=r"pyramid='fpnn' is unknown"):
            build_backbone(pyramid="fpnn")
        with pytest.raises(ValueError, match=r"scale_factors=\(4.0, 1.0\) do not fit"):
            build_backbone(scale_factors=(4.0, 1.0))
        with pytest.raises(ValueError, match=r"scale_factors: 8\.0 is unknown"):
            build_backbone(scale_factors=(8.0, 4.0))


class TestOfParts:
    """An encoder of parts that somebody built."""

    def parts(self, depth=2):
        spec = EncoderSpec(dim=16, depth=2, num_heads=2, window_size=2)
        partitions = [Windows(2), Partition()]
        build = BlockParts(
            dim=16, num_heads=2, grid=(4, 4), norm_layer=torch.nn.LayerNorm,
            mlp=lambda dim: Mlp(dim, 64, torch.nn.GELU),
        )  # fmt: skip
        stem = PatchEmbed(4, 3, 16)
        return spec, 16, stem, [build.block(p) for p in partitions[:depth]]

    def test_computes_and_loads_what_the_words_do(self, tmp_path):
        words = ViT(
            img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, window_size=2,
            pretrain_img_size=16, pretrain_use_cls_token=False, window_block_indexes=[0],
        )  # fmt: skip
        torch.save(words.state_dict(), tmp_path / "own.pth")
        encoder = Encoder(*self.parts(), pos_embed=torch.nn.Parameter(torch.zeros(1, 16, 16)))
        assert list(encoder.state_dict()) == list(words.state_dict())
        load_encoder(encoder, tmp_path / "own.pth", show=lambda _: None)
        image = torch.randn(2, 3, 16, 24)
        assert torch.equal(encoder(image)["last_feat"], words(image)["last_feat"])
        assert encoder.plan == words.plan == ("window", "global")
        assert encoder.output_shape() == words.output_shape()

    def test_parts_that_do_not_fit(self):
        with pytest.raises(ValueError, match=re.escape("1 blocks do not fit: spec.depth=2")):
            Encoder(*self.parts(depth=1))
        with pytest.raises(ValueError, match="out_chans=8 does not fit: it goes with a neck"):
            Encoder(*self.parts(), out_chans=8)
