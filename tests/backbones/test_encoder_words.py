"""The encoder's recipe as words: positions, norms, activations, dropped tokens, registers."""

import copy
import warnings
from functools import partialmethod

import pytest
import timm
import torch
from timm.layers import build_sincos2d_pos_embed
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTMAEConfig, ViTMAEModel
from vit_pytorch.simple_vit import posemb_sincos_2d

from backbones import (
    ACTIVATIONS,
    CONV_BLOCKS,
    NORMS,
    STEMS,
    ViT,
    build_backbone,
    build_encoder,
)
from backbones.attention import Attention
from backbones.kernels import Linear
from backbones.positions import absolute_positions, sincos_positions
from backbones.pretraining.mae import MaskedAutoencoder
from backbones.sequence import TokenSequence, draw_kept
from backbones.stems import PatchEmbed
from backbones.weights import WeightsError, encoder_words, load_encoder, read

from .test_attention import STRATEGIES, Scattered, assert_same, normal_weights

SMALL = dict(img_size=256, embed_dim=48, depth=4, num_heads=4, window_size=5)
IMAGE = torch.randn(2, 3, 176, 304, generator=torch.Generator().manual_seed(0))  # 11 x 19 tokens


def small(**words) -> ViT:
    torch.manual_seed(0)
    return normal_weights(build_encoder("vit-ti", **{**SMALL, **words}))


# ---- Positions ----------------------------------------------------------------------------------


class TestPositions:
    @pytest.mark.parametrize("dim", [48, 768])
    def test_fixed_ones_are_maes(self, dim):
        words = dict(hidden_size=dim, num_hidden_layers=1, num_attention_heads=4)
        embeddings = ViTMAEModel(ViTMAEConfig(**words)).embeddings
        embeddings.patch_embeddings.projection._is_hf_initialized = False  # or it does nothing
        embeddings.initialize_weights()
        theirs = embeddings.position_embeddings
        words = dict(embed_dim=dim, depth=1, num_heads=4, positions="sincos2d")
        with_cls = build_encoder("vit-b", **words).pos_embed
        without = build_encoder("vit-b", **words, pretrain_use_cls_token=False).pos_embed
        torch.testing.assert_close(with_cls, theirs, rtol=0, atol=1e-6)
        assert torch.equal(without, with_cls[:, 1:])
        assert not with_cls.requires_grad

    def test_fixed_ones_are_timms(self):
        """Which has rows first, and sines of both axes in front of the cosines."""
        words = dict(depth=1, positions="sincos2d", pretrain_use_cls_token=False)
        found_PASF = build_encoder("vit-ti", **words).pos_embed[0].unflatten(1, (2, 2, 48))
        found = found_PASF.flip(1).transpose(1, 2).flatten(1)
        theirs = build_sincos2d_pos_embed([14, 14], dim=192)
        torch.testing.assert_close(found, theirs, rtol=0, atol=1e-5)

    def test_simple_vits_are_the_same_function_of_other_frequencies(self):
        last = torch.arange(12)
        found = sincos_positions((5, 7), 1 / 10_000 ** (last / 11))
        assert torch.equal(found[0].flatten(0, 1), posemb_sincos_2d(5, 7, 48))

    def test_they_are_resized_as_learned_ones_are(self):
        encoder = small(positions="sincos2d")
        found = encoder.tokens(IMAGE) - encoder.patch_embed(IMAGE)
        expected = absolute_positions(encoder.pos_embed, True, (11, 19))
        torch.testing.assert_close(found[:1], expected, rtol=1e-4, atol=1e-5)

    def test_they_stay_as_they_are_in_training(self):
        encoder = build_encoder("vit-ti", **SMALL, positions="sincos2d")
        before = encoder.pos_embed.clone()
        trained = torch.optim.AdamW(encoder.parameters(), lr=0.1)
        encoder(IMAGE)["last_feat"].sum().backward()
        trained.step()
        assert torch.equal(encoder.pos_embed, before)

    def test_keys_are_those_of_learned_positions(self):
        learned, fixed = (build_encoder("vit-ti", positions=p) for p in ("learned", "sincos2d"))
        assert learned.state_dict().keys() == fixed.state_dict().keys()

    def test_none_is_detectron2s_word(self):
        none, theirs = build_encoder("vit-ti", positions="none"), ViT(use_abs_pos=False)
        assert none.pos_embed is None
        assert theirs.pos_embed is None

    def test_a_shifted_image_gives_shifted_features_without_positions(self):
        encoder = small(positions="none", propagation="none").eval()
        moved = torch.roll(IMAGE, 80, 3)  # a window
        found, expected = encoder(moved)["last_feat"], encoder(IMAGE)["last_feat"]
        torch.testing.assert_close(found[..., 5:15], expected[..., :10])

    def test_the_residual_stream_is_float32_under_autocast(self):
        with torch.autocast("cpu", torch.bfloat16):
            for positions in ("learned", "sincos2d", "none"):
                assert small(positions=positions).tokens(IMAGE).dtype == torch.float32


# ---- Norms and activations ----------------------------------------------------------------------


class TestNormsAndActivations:
    def test_batch_norm_is_over_images_and_tokens(self):
        encoder = small(block_norm="batch").train()
        norm = encoder.blocks[0].norm1
        x_BHWC = 3 * torch.randn(2, 4, 6, 48) + 1
        expected = nn.BatchNorm1d(48)
        expected.load_state_dict(norm.state_dict())
        found = norm(x_BHWC)
        torch.testing.assert_close(found.flatten(0, 2), expected(x_BHWC.flatten(0, 2)))
        torch.testing.assert_close(norm.running_var, expected.running_var)

    @pytest.mark.parametrize(
        ("word", "function"),
        [
            ("gelu", nn.functional.gelu),
            ("gelu_tanh", lambda x: nn.functional.gelu(x, approximate="tanh")),
            ("relu6", lambda x: x.clamp(0, 6)),
            ("quick_gelu", lambda x: x * torch.sigmoid(1.702 * x)),
        ],
    )
    def test_activations(self, word, function):
        act = small(activation=word).blocks[0].mlp.act
        x = torch.linspace(-9, 9, 50)
        torch.testing.assert_close(act(x), function(x))

    def test_ones_own(self, monkeypatch):
        for registry in (NORMS, ACTIVATIONS):
            monkeypatch.setattr(registry, "_obj_map", dict(registry._obj_map))

        @NORMS.register("test_none")
        def no_norm(channels):
            return nn.Identity()

        @ACTIVATIONS.register("test_square")
        class Square(nn.Module):
            def forward(self, x):
                return x.square()

        words = dict(block_norm="test_none", activation="test_square")
        encoder = build_encoder("vit-ti", **SMALL, **words)
        assert isinstance(encoder.blocks[0].mlp.act, Square)
        assert isinstance(encoder.blocks[0].norm2, nn.Identity)
        assert encoder(IMAGE)["last_feat"].isfinite().all()

    def test_ones_own_modules_begin_as_they_were_made(self, monkeypatch):
        """Linear layers of a user's stem, residual, norm and activation; ours as ever."""
        for registry in (NORMS, ACTIVATIONS, STEMS, CONV_BLOCKS):
            monkeypatch.setattr(registry, "_obj_map", dict(registry._obj_map))

        class Fixed(nn.Module):
            def __init__(self, *dims, value=3.0):
                super().__init__()
                self.linear = nn.Linear(2, 2)
                nn.init.constant_(self.linear.weight, value)
                nn.init.constant_(self.linear.bias, value)

        class Stem(PatchEmbed):
            def __init__(self, *sizes):
                super().__init__(*sizes)
                self.fixed = Fixed()
                nn.init.zeros_(self.proj.weight)

        for registry in (NORMS, ACTIVATIONS, CONV_BLOCKS):
            registry.register("test_fixed")(Fixed)
        STEMS.register("test_fixed")(Stem)
        words = dict(block_norm="test_fixed", activation="test_fixed", conv_block="test_fixed")
        words |= dict(SMALL, stem="test_fixed")
        alone = build_encoder("vit-ti", **words, propagation="conv")
        pretrained = build_encoder("vit-ti", **words, propagation="global", count="all")
        MaskedAutoencoder(pretrained, decoder_dim=16, decoder_depth=1, decoder_heads=2)
        for net, residuals in ((alone, 2), (pretrained, 0)):
            fixed = [m.linear for m in net.modules() if isinstance(m, Fixed)]
            assert len(fixed) == 1 + 4 * 3 + residuals
            assert all((p == 3).all() for linear in fixed for p in linear.parameters())
            assert not net.patch_embed.proj.weight.any()
            for linear in (m for m in net.modules() if type(m) is Linear):
                # ViTDet's normal of 0.02; MAE's Xavier, of each product's sizes.
                spread = 0.02 if net is alone else (2 / sum(linear.weight.shape)) ** 0.5
                assert linear.weight.std().item() == pytest.approx(spread, rel=0.1)
                assert not linear.bias.any()

    def test_defaults_are_unchanged(self):
        found, expected = build_encoder("vit-ti"), ViT(embed_dim=192, num_heads=3)
        assert found.state_dict().keys() == expected.state_dict().keys()
        assert found.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
        block = found.blocks[0]
        assert (block.norm1.eps, type(block.mlp.act)) == (1e-6, nn.GELU)


# ---- Dropped tokens -----------------------------------------------------------------------------


class TestDraw:
    @pytest.mark.parametrize(
        ("size", "window", "ratio"),
        [((64, 64), 14, 0.1), ((11, 19), 5, 0.3), ((16, 16), 4, 0.1), ((1, 1), 14, 0.9)],
    )
    def test_windows_keep_as_many_places_and_as_many_real_tokens_each_time(
        self, size, window, ratio
    ):
        places = window**2
        kept = draw_kept(size, window, ratio)
        rows, columns = (n // window for n in kept.shape)
        of_window = kept.unflatten(0, (rows, window)).unflatten(2, (columns, window)).sum((1, 3))
        assert (of_window == places - round(ratio * places)).all()
        real = int(kept[: size[0], : size[1]].sum())
        again = draw_kept(size, window, ratio)
        assert int(again[: size[0], : size[1]].sum()) == real >= 1
        whole = size[0] * size[1]
        assert real == 1 or abs(real / whole - (1 - round(ratio * places) / places)) < 0.02

    def test_every_token_is_left_out_as_often(self):
        torch.manual_seed(0)
        share = torch.stack([draw_kept((8, 12), 4, 0.25) for _ in range(600)]).float().mean(0)
        assert (share - 0.75).abs().max() < 0.08  # 4.5 standard deviations

    def test_draws_follow_torchs_seed(self):
        draws = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            draws.append(draw_kept((16, 16), 8, 0.3))
        assert torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])


def masked_reference(encoder: ViT, image, kept_PQ) -> torch.Tensor:
    """The same by masks over all places of the map: no token is taken away, none sees a dropped
    one. (B, C, H, W)."""
    x_BHWC = encoder.tokens(image)
    H, W = x_BHWC.shape[1:3]
    for block in encoder.blocks:
        attn, partition = block.attn, block.attn.partition
        y = nn.functional.pad(block.norm1(x_BHWC), (0, 0, 0, -W % 5, 0, -H % 5))
        kept = kept_PQ
        if partition.word == "global":
            y, kept = y[:, :H, :W], kept_PQ[:H, :W]
        P, Q = y.shape[1:3]
        y_GhwC = partition.split(y)
        hidden_GN = ~partition.split(kept[None, :, :, None]).flatten(1)
        sees = partition.mask(P, Q, "cpu")
        hidden_GNN = hidden_GN[:, None, :].expand(-1, hidden_GN.shape[1], -1)
        if sees is not None:
            hidden_GNN = hidden_GNN | ~sees
        hidden_GNN = hidden_GNN & ~hidden_GN[:, :, None]  # what a dropped one sees does not matter
        q, k, v = attn.in_groups(block.norm1(x_BHWC))
        hidden = hidden_GNN.repeat(len(image), 1, 1)[:, None]
        scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(hidden, float("-inf"))
        out = (scores.softmax(-1) @ v).transpose(1, 2).reshape(y_GhwC.shape)
        x_BHWC = x_BHWC + partition.join(attn.proj(out), P, Q)[:, :H, :W]
        x_BHWC = x_BHWC + block.mlp(block.norm2(x_BHWC))
        if hasattr(block, "residual"):
            there = kept_PQ[:H, :W, None]
            x_BHWC = block.residual((x_BHWC * there).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    there = kept_PQ[:H, :W, None]
    return torch.where(there, x_BHWC, encoder.mask_token).permute(0, 3, 1, 2)


def with_gradients(encoder, out) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    (out * torch.randn_like(out)).sum().backward()
    found = {n: p.grad for n, p in encoder.named_parameters() if p.requires_grad}
    encoder.zero_grad()
    return {"output": out.detach(), **found}


ROPES = ["", "rope", "rope(unit=token,coordinates=window)"]


@pytest.mark.parametrize("attention", ["fused", "reference", "gpu", "gpu, labelled"])
@pytest.mark.parametrize("propagation", STRATEGIES)
def test_dropped_tokens_are_those_that_nobody_sees(propagation, attention, monkeypatch):
    """In value and gradient, for every kernel; padding of windows among them, which turns too."""
    if attention.startswith("gpu"):
        form = "labelled" if "labelled" in attention else "folded"
        folded = partialmethod(Attention._folded, kernel=form)
        monkeypatch.setattr(Attention, "_chunked", folded)
        attention = "fused"
    for positions in ROPES:
        words = dict(propagation=propagation, mask_ratio=0.3)
        words |= dict(positions=positions) if positions else {}
        encoder = small(**words, attention=attention).train()
        torch.manual_seed(2)
        kept = draw_kept((11, 19), 5, 0.3)
        expected = with_gradients(encoder, masked_reference(encoder, IMAGE, kept))
        torch.manual_seed(2)
        found = with_gradients(encoder, encoder(IMAGE)["last_feat"])
        assert found["mask_token"].abs().sum() > 0
        assert_same(found, expected, 2e-5)


@pytest.mark.parametrize("attention", ["fused", "reference"])
def test_groups_that_keep_nothing(attention):
    """Of shifted windows, when windows keep 2 of 25 places each."""
    encoder = small(propagation="shifted", mask_ratio=0.9, attention=attention).train()
    for seed in range(3):
        torch.manual_seed(seed)
        found = with_gradients(encoder, encoder(IMAGE)["last_feat"])
        assert all(value.isfinite().all() for value in found.values())


def test_dropped_tokens_of_a_partition_of_ones_own():
    """One whose padding is no window's."""
    encoder = small(mask_ratio=0.3, count=4)
    for block in encoder.blocks:
        block.attn.partition = Scattered()
    out = {}
    for attention in ("fused", "reference"):
        for block in encoder.blocks:
            block.attn.attention = attention
        torch.manual_seed(2)
        out[attention] = with_gradients(encoder, encoder(IMAGE)["last_feat"])
    assert_same(out["fused"], out["reference"], 1e-5)


def test_work_is_saved():
    """By as much as tokens are left out."""
    macs = {}
    for ratio in (0.0, 0.5):
        encoder = small(mask_ratio=ratio, window_size=10).train()
        with FlopCounterMode(display=False) as counter:
            encoder(torch.randn(2, 3, 160, 160))
        macs[ratio] = counter.get_flop_counts()
    for part in ("blocks.0.mlp", "blocks.0.attn.qkv", "blocks.1.attn.proj"):
        (half,), (whole,) = (macs[r][f"ViT.{part}"].values() for r in (0.5, 0.0))
        assert half == whole / 2
    for block in (0, 1):  # a window block and a global one
        half, whole = (
            sum(macs[r][f"ViT.blocks.{block}.attn"].values())
            - sum(sum(macs[r][f"ViT.blocks.{block}.attn.{p}"].values()) for p in ("qkv", "proj"))
            for r in (0.5, 0.0)
        )
        assert half == whole / 4 > 0


def test_nothing_is_dropped_in_evaluation():
    masked, whole = small(mask_ratio=0.5).eval(), small().eval()
    whole.load_state_dict({k: v for k, v in masked.state_dict().items() if k != "mask_token"})
    assert torch.equal(masked(IMAGE)["last_feat"], whole(IMAGE)["last_feat"])


def test_the_neck_gets_a_whole_map():
    backbone = build_backbone("vit-ti", depth=4, mask_ratio=0.1, pyramid="fpn_4stage")
    levels = backbone.train()(torch.randn(1, 3, 224, 224))
    assert levels["p2"].shape[2:] == (56, 56)


@pytest.mark.parametrize(
    "words",
    [dict(mask_ratio=0.3), dict(registers=2), dict(mask_ratio=0.3, registers=2, out_chans=8)],
)
def test_checkpointing_compiling_and_autocast(words):
    plain = small(**words, drop_path_rate=0.3).train()
    saving = copy.deepcopy(plain)
    saving.use_act_checkpoint = True
    results = []
    for net in (plain, saving):
        torch.manual_seed(3)
        results.append(with_gradients(net, net(IMAGE)["last_feat"]))
    assert_same(results[1], results[0], 1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(3)
        rough = plain(IMAGE)["last_feat"]
    exact = results[0]["output"]
    assert (rough - exact).norm() < 0.05 * exact.norm()
    torch._dynamo.reset()
    compiled = torch.compile(plain, backend="eager")
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = compiled(IMAGE)["last_feat"]
    torch.testing.assert_close(again, exact, rtol=1e-4, atol=1e-4)


def test_batch_norm_counts_a_batch_once_with_checkpointing():
    plain = small(block_norm="batch").train()
    saving = copy.deepcopy(plain)
    saving.use_act_checkpoint = True
    results = [with_gradients(net, net(IMAGE)["last_feat"]) for net in (plain, saving)]
    assert_same(results[1], results[0], 1e-6)
    assert plain.blocks[1].norm2.running_mean.any()
    assert_same(dict(saving.named_buffers()), dict(plain.named_buffers()), 1e-6)


# ---- Registers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(80, 80), (96, 64)])
def test_registers_are_timms(size):
    """Without a cls token and windows; positions resized as timm does at another size."""
    theirs = timm.create_model(
        "vit_base_patch16_reg4_gap_256", embed_dim=48, depth=3, num_heads=4, img_size=80,
        num_classes=0, dynamic_img_size=True,
    )  # fmt: skip
    normal_weights(theirs.eval())
    ours = small(depth=3, count=3, registers=4, pretrain_img_size=80, pretrain_use_cls_token=False)
    ours.eval().load_state_dict(
        {
            {"reg_token": "registers"}.get(key, key): value
            for key, value in theirs.state_dict().items()
            if not key.startswith(("norm.", "fc_norm.", "head"))
        }
    )
    image = torch.randn(2, 3, *size)
    theirs._pos_embed = (
        lambda x: (  # its own resizing is antialiased, which ViTDet's is not
            torch.cat(
                [
                    theirs.reg_token.expand(2, -1, -1),
                    (x + absolute_positions(theirs.pos_embed, False, tuple(x.shape[1:3]))).flatten(
                        1, 2
                    ),
                ],
                1,
            )
        )
    )
    tokens = theirs._pos_embed(theirs.patch_embed(image))
    for block in theirs.blocks:
        tokens = block(tokens)
    expected = tokens[:, 4:].transpose(1, 2).unflatten(2, [n // 16 for n in size])
    torch.testing.assert_close(ours(image)["last_feat"], expected, rtol=1e-4, atol=1e-4)


def test_registers_carry_nothing_between_windows():
    """In window blocks they see each other only: each token's map depends on its window alone until
    the global block."""
    encoder = small(registers=2, depth=3, count=1, placement="first", positions="none")
    blocks = encoder.blocks
    x = torch.randn(1, 10, 10, 48, requires_grad=True)
    registers = encoder.registers.detach().requires_grad_()
    partitions = [b.attn.partition for b in blocks]
    sequence = TokenSequence((10, 10), partitions, 2, None, x.device)
    out = blocks[2](blocks[1](sequence.from_map(x, registers), sequence), sequence)
    sequence.to_map(out)[0, 0, 0].sum().backward(retain_graph=True)
    assert (x.grad[0, :5, :5].abs().sum(-1) > 0).all()
    assert x.grad[0].abs().sum(-1).count_nonzero() == 25
    assert not registers.grad.abs().sum()
    out[:, :2].sum().backward()
    assert x.grad[0].abs().sum(-1).count_nonzero() == 25
    assert (registers.grad.abs().sum(-1) > 0).all()
    joint = blocks[0](sequence.from_map(x, registers), sequence)
    x.grad = registers.grad = None
    sequence.to_map(joint)[0, 0, 0].sum().backward()
    assert (x.grad.abs().sum(-1) > 0).all()
    assert (registers.grad.abs().sum(-1) > 0).all()


def test_registers_pass_a_conv_block_by():
    words = dict(window_block_indexes=[0, 1], residual_block_indexes=[1], depth=3)
    with_registers, without = small(**words, registers=2), small(**words)
    without.load_state_dict(with_registers.state_dict(), strict=False)
    blocks = with_registers.blocks
    sequence = TokenSequence((11, 19), [b.attn.partition for b in blocks], 2, None, IMAGE.device)
    x = sequence.from_map(with_registers.tokens(IMAGE), with_registers.registers)
    found = blocks[1](x, sequence)
    del blocks[1].residual
    assert torch.equal(found[:, :2], blocks[1](x, sequence)[:, :2])
    expected = without.blocks[1](without.tokens(IMAGE))
    torch.testing.assert_close(sequence.to_map(found), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attention", ["fused", "reference", "gpu"])
def test_registers_in_every_kernel(attention, monkeypatch):
    if attention == "gpu":
        monkeypatch.setattr(Attention, "_chunked", Attention._folded)
    words = dict(registers=3, mask_ratio=0.2, count=2)
    encoder = small(**words, attention="fused" if attention == "gpu" else attention).train()
    reference = small(**words, attention="reference").train()
    results = []
    for net in (encoder, reference):
        torch.manual_seed(4)
        results.append(with_gradients(net, net(IMAGE)["last_feat"]))
    assert all(value is not None for value in results[0].values())
    assert_same(*results, 1e-5)


# ---- What does not fit --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (dict(positions="sincos"), "positions='sincos' is unknown: did you mean 'sincos2d'"),
        (dict(positions="sincos2d", use_abs_pos=False), "contradicts use_abs_pos=False"),
        (
            dict(positions="sincos2d", embed_dim=50, num_heads=5),
            "embed_dim=50 does not fit positions='sincos2d': a multiple of 4",
        ),
        (dict(block_norm="batchnorm"), "block_norm='batchnorm' is unknown: did you mean 'batch'"),
        (dict(activation="relu"), "activation='relu' is unknown: did you mean 'relu6'"),
        (dict(mask_ratio=1.0), "mask_ratio=1.0 does not fit: a number of at least 0 and below 1"),
        (dict(mask_ratio=0.01), "mask_ratio=0.01 does not fit: of the 25 tokens of a window"),
        (dict(mask_ratio=0.1, use_rel_pos=True), "mask_ratio=0.1 does not fit use_rel_pos=True"),
        (dict(registers=4, use_rel_pos=True), "registers=4 does not fit use_rel_pos=True"),
        (dict(registers=-1), "registers=-1 does not fit: a whole number of at least 0"),
        (dict(registers=4, propagation="conv"), "registers=4 does not fit: no block is global"),
    ],
)
def test_words_that_do_not_fit(words, message):
    with pytest.raises(ValueError, match=message):
        build_encoder("vit-ti", **{**SMALL, **words})


# ---- Weights ------------------------------------------------------------------------------------


class TestWeights:
    @pytest.fixture
    def dinov2(self, tmp_path):
        """A DINOv2 with four registers, in timm's keys, and where its file lies."""
        model = timm.create_model(
            "vit_small_patch14_reg4_dinov2", embed_dim=48, depth=3, num_heads=4, img_size=70,
            num_classes=0,
        )  # fmt: skip
        torch.save(normal_weights(model).state_dict(), tmp_path / "dinov2.pth")
        return model, tmp_path / "dinov2.pth"

    def encoder(self, **words):
        words = dict(patch_size=14, img_size=70, pretrain_img_size=70, depth=3) | words
        return build_encoder("vit-ti", **{**SMALL, **words})

    def test_registers_are_loaded_where_the_encoder_has_as_many(self, dinov2):
        model, path = dinov2
        encoder = self.encoder(registers=4)
        account = load_encoder(encoder, path, show=str)
        assert torch.equal(encoder.registers, model.reg_token)
        assert "registers" in account.loaded
        assert "registers" not in {why for why, _ in account.dropped.values()}

    @pytest.mark.parametrize("count", [0, 2])
    def test_or_else_left_out(self, dinov2, count):
        encoder = self.encoder(registers=count)
        before = copy.deepcopy(encoder.registers)
        account = load_encoder(encoder, dinov2[1], show=str)
        assert "registers" in {why for why, _ in account.dropped.values()}
        if count:
            assert torch.equal(encoder.registers, before)
            assert "registers" in account.new
            assert "registers: 4 in the file, 2 here: left out" in account.notes

    def test_a_registers_position_is_added(self, tmp_path):
        model = timm.create_model(
            "test_vit2", embed_dim=48, depth=3, num_heads=4, img_size=80, num_classes=0
        )
        torch.save(normal_weights(model).state_dict(), tmp_path / "vit.pth")
        encoder = self.encoder(
            patch_size=16, img_size=80, pretrain_img_size=80, registers=1, mlp_ratio=3
        )
        words = encoder_words(read(tmp_path / "vit.pth"))
        assert words["mlp_ratio"] == 3
        load_encoder(encoder, tmp_path / "vit.pth", show=str)
        assert torch.equal(encoder.registers, model.reg_token + model.pos_embed[:, :1])

    def test_maes_positions_fit_fixed_ones(self, tmp_path):
        learned = small(pretrain_img_size=80)
        state = learned.state_dict() | {"cls_token": torch.ones(1, 1, 48)}
        torch.save(state, tmp_path / "mae.pth")
        encoder = build_encoder("vit-ti", **SMALL, pretrain_img_size=80, positions="sincos2d")
        load_encoder(encoder, tmp_path / "mae.pth", show=str)
        assert torch.equal(encoder.pos_embed, learned.pos_embed)
        assert not encoder.pos_embed.requires_grad

    @pytest.mark.parametrize(
        "words", [dict(registers=3), dict(mask_ratio=0.2), dict(block_norm="batch")]
    )
    def test_ones_own_encoder_there_and_back(self, words, tmp_path):
        encoder = small(**words, count=4).eval()
        torch.save(encoder.state_dict(), tmp_path / "own.pth")
        again = build_encoder("vit-ti", **SMALL, count=4, **words).eval()
        account = load_encoder(again, tmp_path / "own.pth", show=str)
        assert not account.dropped
        assert not account.new
        shown = ViT(**encoder_words(read(tmp_path / "own.pth")) | dict(num_heads=4)).eval()
        load_encoder(shown, tmp_path / "own.pth", show=str)
        expected = encoder(IMAGE)["last_feat"]
        for net in (again, shown):
            torch.testing.assert_close(net(IMAGE)["last_feat"], expected)

    def test_a_mask_token_is_new_or_left_out(self, tmp_path):
        for name, words in (("masked", dict(mask_ratio=0.2)), ("whole", {})):
            torch.save(small(**words).state_dict(), tmp_path / f"{name}.pth")
        account = load_encoder(small(mask_ratio=0.2), tmp_path / "whole.pth", show=str)
        assert account.new == {"mask_token": 48}
        account = load_encoder(small(), tmp_path / "masked.pth", show=str)
        assert account.dropped == {"mask_token": ("mask token: this encoder has none", 48)}

    def test_a_file_of_layer_norms_does_not_fit_batch_norms(self, tmp_path):
        torch.save(small().state_dict(), tmp_path / "layer.pth")
        with pytest.raises(
            WeightsError, match=r"no statistics of batch norms: .*block_norm decides"
        ):
            load_encoder(small(block_norm="batch"), tmp_path / "layer.pth")
