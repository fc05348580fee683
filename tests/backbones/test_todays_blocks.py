"""Rotary and tiled positions, gated MLPs, LayerScale, norms of q and k: against timm's functions,
kernel against kernel, and the named sizes against their originals."""

import copy
from functools import partial

import pytest
import timm
import torch
from timm.layers import GluMlp, SwiGLU, apply_rot_embed_cat, build_rotary_pos_embed
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
from torch import nn

from backbones import MLPS, SIZES, Partition, Rope, ShiftedWindows, ViT, Windows, build_encoder
from backbones.attention import Attention
from backbones.kernels import turning
from backbones.positions import absolute_positions
from backbones.pretraining.blocks import patch_tokens
from backbones.pretraining.mae import MaskedAutoencoder
from backbones.sequence import TokenSequence

from .test_attention import STRATEGIES, assert_same, outputs_and_gradients, twins
from .test_encoder_words import small

WINDOWED = "rope(unit=token,coordinates=window)"
WORDS = {
    "map": dict(positions="rope"),
    "window": dict(positions=f"learned+{WINDOWED}"),
    "window, k biased": dict(positions="rope(coordinates=window,axes=xy,pairs=neighbours)"),
    "all": dict(
        positions="rope(unit=token,length=3)",
        mlp="swiglu(norm=true)",
        layer_scale=0.5,
        qk_norm=True,
        qkv_bias="qv",
    ),
}
IMAGE = torch.randn(2, 3, 176, 304, generator=torch.Generator().manual_seed(0))  # 11 x 19 tokens


# ---- Rotary positions --------------------------------------------------------------------------


def timms(word: str, size) -> tuple[Rope, torch.Tensor, bool]:
    """Ours, their sines and cosines (N, 2 D) for heads of 16 channels, and whether in halves."""
    if word == "side":
        return Rope(4), RotaryEmbeddingDinoV3(16).get_embed(size), True
    words = dict(dim=16, in_pixels=False, ref_feat_shape=(4, 4), grid_indexing=word)
    rope = Rope(4, unit="token", axes={"ij": "yx", "xy": "xy"}[word])
    return rope, torch.cat(build_rotary_pos_embed(size, **words), -1), False


@pytest.mark.parametrize("size", [(4, 4), (5, 7), (1, 9)])
@pytest.mark.parametrize("word", ["side", "ij", "xy"])
def test_turns_are_timms(word, size):
    """DINOv3's, EVA-02's and Perception Encoder's, at their own size and others."""
    rope, theirs, halves = timms(word, size)
    qkv = torch.randn(2, *size, 3 * 3 * 16)
    turn = rope.turn(Partition(), size, 16, qkv)
    q, k, v = qkv.flatten(1, 2).unflatten(-1, (3, 3, 16)).permute(2, 0, 3, 1, 4)
    expected = [apply_rot_embed_cat(x, theirs, half=halves) for x in (q, k)]
    found = rope(qkv, turn, 3).flatten(1, 2).unflatten(-1, (3, 3, 16)).permute(2, 0, 3, 1, 4)
    for ours, other in zip(found, (*expected, v), strict=True):
        torch.testing.assert_close(ours, other, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("unit", ["side", "token"])
@pytest.mark.parametrize("partition", [Windows(5), ShiftedWindows(4)])
def test_windows_are_small_maps(partition, unit):
    """Each turns as a whole map of a window's size, wherever it lies and whatever is padding."""
    rope = Rope(3, unit=unit, coordinates="window")
    side, like = partition.size, torch.zeros(1)
    for size in ((12, 7), (3, 2)):
        for table, of_one in zip(
            rope.turn(partition, size, 16, like),
            rope.turn(Partition(), (side, side), 16, like),
            strict=True,
        ):
            groups = partition.split(table)
            assert torch.equal(groups, of_one.expand_as(groups))
            assert table.shape[1:3] == partition.padded_size(*size)


def test_a_token_has_one_place_on_the_map():
    """In windows and in global blocks; padding lies beyond the edge."""
    rope, like = Rope(3), torch.zeros(1)
    whole = rope.turn(Partition(), (12, 7), 16, like)
    padded = rope.turn(Windows(5), (12, 7), 16, like)
    for all_of, with_padding in zip(whole, padded, strict=True):
        assert torch.equal(all_of, with_padding[:, :12, :7])
        assert not torch.equal(with_padding[:, 11], with_padding[:, 12])


@pytest.mark.parametrize("halves", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_turning_a_few_rows_at_a_time(dtype, halves, monkeypatch):
    """As by torch's operators, which run elsewhere than on a CPU, in value and gradient."""
    torch.manual_seed(0)
    qkv = torch.randn(2, 5, 3, 3 * 2 * 8, dtype=dtype).transpose(1, 2).contiguous().transpose(1, 2)
    angles = torch.randn(1, 5, 3, 4, dtype=torch.promote_types(dtype, torch.float32))
    turn = (angles.cos(), angles.sin())
    expected = turning._by_operators(qkv, *turn, 2, halves)
    assert expected.dtype == dtype
    for chunk in (1, 2**20):
        monkeypatch.setattr(turning, "_CHUNK_BYTES", chunk)
        torch.testing.assert_close(turning.turned(qkv, *turn, 2, halves), expected)
    torch.library.opcheck(turning._turn, (qkv, *turn, 2, halves))
    if dtype == torch.float64:
        leaf = qkv.contiguous().requires_grad_()
        words = dict(cos_1HWX=turn[0], sin_1HWX=turn[1], num_heads=2, halves=halves)
        function = partial(turning.turned, **words)
        assert torch.autograd.gradcheck(function, leaf)


def test_turning_needs_few_numbers_and_keeps_precision():
    rope = Rope(4)
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        like = torch.zeros(1, 2, 2, 48, dtype=dtype)
        turn = rope.turn(Partition(), (2, 2), 16, like)
        assert turn[0].dtype == expected
        assert rope(like, turn, 1).dtype == dtype
    assert not [*small(positions="rope").buffers()]


# ---- Every kernel, every propagation -----------------------------------------------------------


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("propagation", STRATEGIES)
def test_every_kernel_is_the_reference(propagation, words, monkeypatch):
    """Outputs and gradients: a map that is no multiple of windows or patches, whole windows."""
    for size in ((176, 299), (160, 240)):
        image = torch.randn(1, 3, *size)
        fused, reference = twins(propagation=propagation, **WORDS[words])
        expected = outputs_and_gradients(reference, image)
        assert_same(outputs_and_gradients(fused, image), expected, 2e-5)
        with monkeypatch.context() as patch:
            patch.setattr(Attention, "_chunked", Attention._folded)
            assert_same(outputs_and_gradients(fused, image), expected, 2e-5)
        with torch.no_grad():
            found = fused(image)["last_feat"]
        torch.testing.assert_close(found, expected["output"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("more", [{}, dict(registers=2, mask_ratio=0.3)], ids=str)
@pytest.mark.parametrize(("propagation", "kinds"), [("global", 2), ("shifted", 2), ("none", 1)])
def test_tables_are_computed_once_in_a_pass(propagation, kinds, more, monkeypatch):
    """For the blocks of one grouping together, in training with checkpoints as well."""
    if propagation != "global":
        more = {k: v for k, v in more.items() if k != "registers"}
    calls = []
    computed = Rope.turn
    monkeypatch.setattr(Rope, "turn", lambda *args: calls.append(args[1]) or computed(*args))
    words = dict(propagation=propagation, positions="rope(coordinates=window)", **more)
    encoder = small(depth=6, use_act_checkpoint=True, **words).train()
    encoder(IMAGE)["last_feat"].sum().backward()
    assert len(calls) == kinds
    assert {id(block.attn.partition) for block in encoder.blocks} == {id(one) for one in calls}


@pytest.mark.parametrize("words", WORDS)
def test_with_registers_dropped_tokens_and_checkpoints(words):
    words = WORDS[words] | dict(registers=2, mask_ratio=0.3)
    found = []
    for more in (
        dict(attention="reference"),
        dict(attention="fused"),
        dict(attention="fused", use_act_checkpoint=True),
    ):
        encoder = small(**words, **more).train()
        torch.manual_seed(2)
        found.append(outputs_and_gradients(encoder, IMAGE))
    assert_same(found[1], found[0], 2e-5)
    assert_same(found[2], found[1], 1e-6)


def test_registers_do_not_turn():
    """A register sees the map from no place: a token's turn, undone, is its own."""
    encoder = small(positions="rope", registers=2, propagation="global", count=4).eval()
    attn = encoder.blocks[0].attn
    seen = []
    rope = attn.rope
    attn.rope = copy.copy(rope)
    attn.rope.__class__ = type(
        "Seen", (Rope,), {"__call__": lambda self, *args: seen.append(args) or rope(*args)}
    )
    encoder(IMAGE)
    qkv, (cos, sin), heads = seen[0]
    turned = rope(qkv, (cos, sin), heads)
    assert torch.equal(turned[:, :2], qkv[:, :2])
    assert not torch.equal(turned[:, 2:], qkv[:, 2:])
    table = rope.turn(Partition(), (11, 19), 12, IMAGE)
    assert torch.equal(cos[:, 2:, 0], table[0].flatten(1, 2))


@pytest.mark.parametrize("positions", ["rope", WINDOWED])
@pytest.mark.parametrize("propagation", ["none", "shifted"])
def test_windows_turn_alike_beside_registers(propagation, positions):
    """Which they do not see: a sequence's tokens keep their places, on the map or in the window."""
    encoder = small(positions=positions, propagation=propagation).eval()
    block, x, registers = encoder.blocks[1], torch.randn(2, 11, 19, 48), torch.randn(1, 3, 48)
    partitions = [block.attn.partition]
    sequence = TokenSequence((11, 19), partitions, 3, None, torch.device("cpu"))
    found = sequence.to_map(block(sequence.from_map(x, registers), sequence))
    torch.testing.assert_close(found, block(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("words", ["window", "all"])
def test_compiles_and_exports(words):
    torch._dynamo.reset()
    net, reference = twins(propagation="shifted", depth=2, **WORDS[words])
    image = torch.randn(1, 3, 176, 304)
    expected = outputs_and_gradients(net, image)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    found = outputs_and_gradients(compiled, image)
    found = {name.removeprefix("_orig_mod."): value for name, value in found.items()}
    assert_same(found, expected, 1e-5)
    program = torch.export.export(net.eval(), (image,))
    found, expected = program.module()(image)["last_feat"], reference.eval()(image)["last_feat"]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_under_autocast():
    fused, reference = twins(propagation="global", **WORDS["all"])
    exact = reference(IMAGE)["last_feat"]
    with torch.autocast("cpu", torch.bfloat16):
        rough = fused(IMAGE)["last_feat"]
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() <= 0.05 * exact.norm()


# ---- The other parts ---------------------------------------------------------------------------


def test_gated_mlps_are_timms():
    ours = MLPS.get("swiglu")(8, 20, nn.LayerNorm, norm=True)
    theirs = SwiGLU(8, 20, norm_layer=nn.LayerNorm)
    names = {"w1": "fc1_g", "w2": "fc1_x", "w3": "fc2", "norm": "norm"}
    for ours_is, theirs_is in names.items():
        ours.get_submodule(ours_is).load_state_dict(theirs.get_submodule(theirs_is).state_dict())
    x = torch.randn(2, 3, 4, 8)
    torch.testing.assert_close(ours(x), theirs(x))
    plain = MLPS.get("swiglu")(8, 20, nn.LayerNorm)
    packed = GluMlp(8, 40, act_layer=nn.SiLU, gate_last=False)
    for part in ("weight", "bias"):
        joined = torch.cat([getattr(plain.w1, part), getattr(plain.w2, part)])
        getattr(packed.fc1, part).data = joined.detach()
    packed.fc2.load_state_dict(plain.w3.state_dict())
    torch.testing.assert_close(plain(x), packed(x))


def test_hidden_channels_in_words():
    shapes = {
        word: small(mlp=word).blocks[0].mlp
        for word in ("mlp", "mlp(hidden=50)", "swiglu", "swiglu(hidden=50)")
    }
    found = [m.linears[0].out_features for m in shapes.values()]
    assert found == [192, 50, 192, 50]
    assert "mlp.norm.weight" not in small(mlp="swiglu").blocks[0].state_dict()


def test_k_without_a_bias():
    """As with one of zeros; padding tokens too."""
    ours, whole = small(qkv_bias="qv"), small()
    state = ours.state_dict()
    for key in [k for k in state if k.endswith("qkv.bias")]:
        q, v = state[key].chunk(2)
        state[key] = torch.cat([q, torch.zeros_like(q), v])
    whole.load_state_dict(state, strict=True)
    torch.testing.assert_close(ours(IMAGE)["last_feat"], whole(IMAGE)["last_feat"])


def test_layer_scale_and_norms_are_as_written():
    torch.manual_seed(0)
    encoder = small(layer_scale=0.5, qk_norm=True, propagation="none", depth=1).eval()
    block, x = encoder.blocks[0], torch.randn(1, 5, 5, 48)
    expected = x + block.ls1.gamma * block.attn(block.norm1(x))
    expected = expected + block.ls2.gamma * block.mlp(block.norm2(expected))
    torch.testing.assert_close(block(x), expected)
    fresh = build_encoder("vit-ti", layer_scale=1e-5, depth=1)
    assert (fresh.blocks[0].ls2.gamma == 1e-5).all()

    attn = block.attn
    q, k, v = attn.qkv(x).unflatten(-1, (3, 4, 12)).unbind(3)
    q, k = attn.q_norm(q), attn.k_norm(k)
    q, k, v = (y.flatten(1, 2).transpose(1, 2) for y in (q, k, v))
    out = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, 5, 5, 48)
    torch.testing.assert_close(attn(x), attn.proj(out), rtol=1e-4, atol=1e-5)


def test_tiled_positions_are_repeated_as_they_are():
    """14 x 14 of the pre-training; bicubic would mix them."""
    encoder = small(positions_resize="tile", window_size=7)
    assert encoder.pos_embed.shape == (1, 197, 48)
    tiled = absolute_positions(encoder.pos_embed, True, (20, 31), "tile")
    map_1HWC = encoder.pos_embed[:, 1:].unflatten(1, (14, 14))
    for top, left in ((0, 0), (14, 0), (0, 14), (14, 28)):
        rows, columns = min(14, 20 - top), min(14, 31 - left)
        assert torch.equal(
            tiled[:, top : top + rows, left : left + columns], map_1HWC[:, :rows, :columns]
        )
    image = torch.zeros(1, 3, 320, 496)
    tokens = encoder.tokens(image)
    assert torch.equal(tokens, tiled + encoder.patch_embed.proj.bias)
    some = torch.tensor([[0, 300, 619]])  # as pre-training reads them
    torch.testing.assert_close(patch_tokens(encoder, image, some), tokens.flatten(1, 2)[:, some[0]])


# ---- Words that do not fit ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (dict(positions="rope", num_heads=256), "heads of 3 channels"),
        (dict(positions="rope", num_heads=128), "heads of 6 channels .*: a multiple of 4"),
        (dict(positions="ropes"), "positions='ropes' is unknown: did you mean 'rope'?"),
        (dict(positions="rope(base=0)"), "base=0 does not fit"),
        (dict(positions="rope(coordinates=windows)"), "did you mean 'window'?"),
        (dict(positions="rope(cordinates=map)"), "did you mean 'coordinates'?"),
        (dict(positions="learned+sincos2d"), "names two of one kind"),
        (dict(positions="rope+rope"), "names two of one kind"),
        (dict(positions="rope", use_rel_pos=True), "does not fit use_rel_pos=True"),
        (dict(positions=WINDOWED, count="all"), "no block has windows; coordinates=map does"),
        (dict(positions="sincos2d+rope", use_abs_pos=False), "contradicts use_abs_pos=False"),
        (dict(positions_resize="tiled"), "did you mean 'tile'?"),
        (dict(positions_resize="tile", window_size=8), "window_size=8 and the 14 positions"),
        (dict(positions_resize="tile", positions="rope"), "tile' has no effect"),
        (dict(qk_norm=True, block_norm="batch"), "qk_norm=True does not fit batch norms"),
        (dict(mlp="swiglu(norm=true)", block_norm="batch"), "does not fit batch norms"),
        (dict(mlp="swigl"), "mlp='swigl' is unknown: did you mean 'swiglu'?"),
        (dict(mlp="swiglu(hidden=0)"), "hidden=0 does not fit"),
        (dict(mlp="swiglu(hiden=8)"), "did you mean 'hidden'?"),
        (dict(mlp="swiglu(dim=8)"), "argument='dim' is unknown"),
        (dict(layer_scale=-1), "layer_scale=-1 does not fit"),
        (dict(layer_scale="1e-5"), "layer_scale='1e-5' does not fit"),
        (dict(qkv_bias="kv"), "qkv_bias='kv' is unknown"),
        (dict(size="dinov3-bb"), "size='dinov3-bb' is unknown: did you mean 'dinov3-b'?"),
        (dict(size="eva2-b"), "did you mean 'eva02-b'?"),
    ],
)
def test_words_that_do_not_fit(words, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message.replace("?", r"\?")):
        build_encoder(**words)


def test_a_plus_in_a_number_joins_no_words():
    assert small(positions="learned+rope(base=1e+3)").blocks[0].attn.rope.base == 1000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (dict(positions="rope"), "positions without rope does"),
        (dict(mlp="swiglu"), "mlp='mlp' does"),
        (dict(layer_scale=1.0), "layer_scale=None does"),
        (dict(qk_norm=True), "qk_norm=False does"),
    ],
)
def test_pre_training_runs_plain_blocks_and_says_so(words, message):
    words = dict(count="all", img_size=224) | words
    with pytest.raises(ValueError, match=message):
        MaskedAutoencoder(build_encoder("vit-ti", depth=2, **words))


# ---- Named sizes -------------------------------------------------------------------------------

# Of timm, and the positions along a side of their images.
ORIGINALS = {
    "dinov2-s": ("vit_small_patch14_dinov2", 37),
    "dinov2-b": ("vit_base_patch14_dinov2", 37),
    "dinov2-l": ("vit_large_patch14_dinov2", 37),
    "dinov2-g": ("vit_giant_patch14_dinov2", 37),
    "dinov3-s": ("vit_small_patch16_dinov3_qkvb", 16),
    "dinov3-s+": ("vit_small_plus_patch16_dinov3_qkvb", 16),
    "dinov3-b": ("vit_base_patch16_dinov3_qkvb", 16),
    "dinov3-l": ("vit_large_patch16_dinov3_qkvb", 16),
    "dinov3-h+": ("vit_huge_plus_patch16_dinov3_qkvb", 16),
    "dinov3-7b": ("vit_7b_patch16_dinov3", 16),
    "eva02-ti": ("eva02_tiny_patch14_224", 16),
    "eva02-s": ("eva02_small_patch14_224", 16),
    "eva02-b": ("eva02_base_patch14_224", 16),
    "eva02-l": ("eva02_large_patch14_224", 16),
    "pe-core-ti": ("vit_pe_core_tiny_patch16_384", 24),
    "pe-core-s": ("vit_pe_core_small_patch16_384", 24),
    "pe-core-b": ("vit_pe_core_base_patch16_224", 14),
    "pe-core-l": ("vit_pe_core_large_patch14_336", 24),
    "pe-core-g": ("vit_pe_core_gigantic_patch14_448", 32),
    "pe-spatial-ti": ("vit_pe_spatial_tiny_patch16_512", 32),
    "pe-spatial-s": ("vit_pe_spatial_small_patch16_512", 32),
    "pe-spatial-b": ("vit_pe_spatial_base_patch16_512", 32),
    "pe-spatial-l": ("vit_pe_spatial_large_patch14_448", 32),
    "pe-spatial-g": ("vit_pe_spatial_gigantic_patch14_448", 32),
}
# What they have around the blocks, and a detector's encoder has not.
AROUND = ("cls_token", "norm.", "fc_norm.", "head.", "attn_pool.")


@pytest.mark.parametrize("size", [s for s in SIZES if s.startswith(("dinov", "eva02", "pe-"))])
def test_named_sizes_have_the_parameters_of_their_originals(size):
    name, side = ORIGINALS[size]
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=0)
        patch = theirs.patch_embed.patch_size[0]
        ours = build_encoder(
            size, patch_size=patch, img_size=64 * patch, pretrain_img_size=side * patch
        )
    kept = [p for n, p in theirs.named_parameters() if not n.startswith(AROUND)]
    expected = sum(p.numel() for p in kept)
    if theirs.patch_embed.proj.bias is None:  # PE; a stem of ours has one
        expected += theirs.embed_dim
    assert sum(p.numel() for p in ours.parameters()) == expected
    assert ours.blocks[0].attn.num_heads == theirs.blocks[0].attn.num_heads
    assert ours.blocks[0].norm1.eps == theirs.blocks[0].norm1.eps
    # As it is named, it reads patches of 16 px, and as many positions.
    with torch.device("meta"):
        named = build_encoder(size)
    assert (named.pos_embed is None) == (theirs.pos_embed is None)
    if named.pos_embed is not None:
        assert named.pos_embed.shape == theirs.pos_embed.shape
    assert isinstance(named, ViT)
    assert named.output_shape()["last_feat"].stride == 16
