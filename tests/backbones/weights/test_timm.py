"""timm's models against ours with their weights, and the releases that have their keys."""

import json
from argparse import Namespace
from functools import partial

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import build_rotary_pos_embed
from timm.models import deit, eva, vision_transformer, vision_transformer_sam
from torch import nn

from backbones import Partition, QuickGELU, Rope, TanhGELU, ViT, build_encoder
from backbones.weights import FORMATS, WeightsError, encoder_words, load_encoder, read
from backbones.weights.foreign import refuse_foreign
from backbones.weights.own import own_encoder
from backbones.weights.words import known_heads

from .test_transformers import assert_close, assert_whole, encoder_from, randomised, refusal, run

TAIL, HEAD, CLS = {"norm behind the last block"}, {"classifier's head"}, {"cls token"}
REGISTERS, POOL = {"registers"}, {"attention pooling in front of the head"}
LAYER_SCALE = {"LayerScale: multiplied into the linear map before it"}
# Model: entries of its positions that belong to no patch, and what is left out.
MODELS = {
    "vit_tiny_patch16_224": (1, TAIL | HEAD | CLS),
    "vit_medium_patch16_gap_256": (0, TAIL | HEAD | LAYER_SCALE),  # and q, k, v without bias
    "vit_so150m2_patch16_reg1_gap_256": (1, TAIL | HEAD | REGISTERS | LAYER_SCALE),
    "vit_betwixt_patch16_reg1_gap_256": (0, TAIL | HEAD | REGISTERS | LAYER_SCALE),
    "vit_base_patch16_reg4_gap_256": (0, TAIL | HEAD | REGISTERS),
    "test_vit2": (1, TAIL | HEAD | REGISTERS | LAYER_SCALE),  # the register has a position
    "vit_base_patch16_siglip_256": (0, TAIL | HEAD | POOL),
    "vit_base_patch16_clip_224": (1, TAIL | HEAD | CLS),
    "vit_base_patch16_clip_quickgelu_224": (1, TAIL | HEAD | CLS),
    "vit_small_patch14_dinov2": (1, TAIL | HEAD | CLS | LAYER_SCALE),
    "vit_giant_patch14_dinov2": (1, TAIL | HEAD | CLS | LAYER_SCALE),  # SwiGLU
    "vit_small_patch14_reg4_dinov2": (0, TAIL | HEAD | CLS | REGISTERS | LAYER_SCALE),
    "vit_base_patch16_radio_v3": (0, HEAD | CLS | REGISTERS | LAYER_SCALE),
    "deit_tiny_distilled_patch16_224": (2, TAIL | HEAD | CLS | {"distillation token"}),
    "deit3_small_patch16_224": (0, TAIL | HEAD | CLS | LAYER_SCALE),
    "eva_giant_patch14_224": (1, TAIL | HEAD | CLS),  # EVA-01: q and v have biases, k none
}
SMALL = dict(embed_dim=48, depth=3, num_heads=4, num_classes=5, dynamic_img_size=True)


@pytest.fixture(autouse=True)
def _positions_without_antialiasing(monkeypatch):
    """timm resizes positions at run time with antialiasing, which detectron2's ViTDet does not."""
    for module, name in (
        (vision_transformer, "resample_abs_pos_embed"),
        (deit, "resample_abs_pos_embed"),
        (eva, "resample_abs_pos_embed"),
        (vision_transformer_sam, "resample_abs_pos_embed_nhwc"),
    ):
        monkeypatch.setattr(module, name, partial(getattr(module, name), antialias=False))


def build(name: str, **words) -> nn.Module:
    """Of 5 x 5 patches."""
    patch = 14 if "patch14" in name else 16
    return randomised(timm.create_model(name, **SMALL | dict(img_size=5 * patch) | words))


def patch_features(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """The patch tokens through the model's own blocks, without its other tokens: (B, C, H, W)."""
    patches = model.patch_embed(image)
    tokens = model._pos_embed(patches)
    tokens = tokens[0] if isinstance(tokens, tuple) else tokens
    features = run(model.blocks, model.norm_pre(tokens[:, model.num_prefix_tokens :]))
    return features.transpose(1, 2).unflatten(2, patches.shape[1:3])


def assert_same_features(encoder: ViT, model: nn.Module):
    patch = encoder.patch_embed.patch_size
    for rows, columns in ((5, 5), (3, 7)):
        image = torch.randn(2, 3, rows * patch, columns * patch)
        with torch.no_grad():
            assert_close(encoder.eval()(image)["last_feat"], patch_features(model, image))


# ---- timm ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_vit(name, tmp_path):
    prefix, dropped = MODELS[name]
    model = build(name)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    # What a file does not show.
    unseen = dict(num_heads=4) | (dict(act_layer=QuickGELU) if "quickgelu" in name else {})
    encoder, account = encoder_from(tmp_path / "model.safetensors", **unseen)
    contents = read(tmp_path / "model.safetensors")
    assert (contents.format, contents.prefix) == ("timm", prefix)
    assert_whole(account, encoder, dropped)
    assert account.resized.keys() == ({"pos_embed"} if prefix > 1 else set())
    assert not any("differs" in note for note in account.notes)
    assert encoder.blocks[0].norm1.eps == model.blocks[0].norm1.eps
    assert_same_features(encoder, model)


def test_checkpoint_of_timms_training(tmp_path):
    model = build("vit_tiny_patch16_224")
    saver = timm.utils.CheckpointSaver(
        model,
        torch.optim.AdamW(model.parameters()),
        args=Namespace(model="vit_tiny_patch16_224", lr=1e-3),
        checkpoint_dir=tmp_path,
    )
    saver.save_checkpoint(epoch=3, metric=71.0)
    encoder, account = encoder_from(tmp_path / "last.pth.tar", num_heads=4)
    assert_whole(account, encoder, MODELS["vit_tiny_patch16_224"][1])
    assert_same_features(encoder, model)


def test_head_of_a_former_timm_is_left_out(tmp_path):
    model = build("vit_tiny_patch16_224")
    state = model.state_dict() | {"pre_logits.fc.weight": torch.ones(48, 48)}
    torch.save(state, tmp_path / "vit.pth")
    encoder, account = encoder_from(tmp_path / "vit.pth", num_heads=4)
    assert_whole(account, encoder, TAIL | HEAD | CLS)


def test_into_an_encoder_for_detection(tmp_path):
    """What detection adds is new; positions are resized; each is in the account."""
    model = build("vit_tiny_patch16_224")
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    words = dict(embed_dim=48, depth=3, num_heads=4, pretrain_img_size=128, use_rel_pos=True)
    encoder = build_encoder("vit-b", **words, propagation="conv", count=1, out_chans=8)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    account = load_encoder(encoder, tmp_path / "vit.pth", show=str)
    assert account.resized.keys() == {"pos_embed"}
    added = ("rel_pos_", ".residual.", "neck.")
    assert account.new.keys() == {k for k in before if any(a in k for a in added)}
    after = encoder.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in account.new)


def test_sizes_of_the_releases():
    """timm's own sizes are this suite's, tensor by tensor."""
    with torch.device("meta"):
        models = [timm.create_model(f"vit_{s}_patch16_224") for s in ("base", "large")]
        models += [timm.create_model("vit_huge_patch14_224")]
    for model, size in zip(models, ("vit-b", "vit-l", "vit-h"), strict=True):
        with torch.device("meta"):
            encoder = build_encoder(size, patch_size=model.patch_embed.patch_size[0], img_size=448)
        theirs = {k: v.shape for k, v in model.state_dict().items()}
        for key, tensor in encoder.state_dict().items():
            assert theirs.pop(key) == tensor.shape
        assert {k.split(".")[0] for k in theirs} <= {"cls_token", "norm", "head"}


# ---- Releases with timm's keys ------------------------------------------------------------------


def mae_state() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A tensor of every name in facebookresearch/mae's `MaskedAutoencoderViT`, whose modules are
    timm's."""
    model = build("vit_tiny_patch16_224", num_classes=0)
    decoder = nn.ModuleDict(
        dict(
            decoder_embed=nn.Linear(48, 32),
            decoder_blocks=nn.ModuleList(
                vision_transformer.Block(32, 2, qkv_bias=True) for _ in range(2)
            ),
            decoder_norm=nn.LayerNorm(32),
            decoder_pred=nn.Linear(32, 16**2 * 3),
        )
    )
    tokens = dict(mask_token=torch.randn(1, 1, 32), decoder_pos_embed=torch.randn(1, 26, 32))
    return model, model.state_dict() | randomised(decoder).state_dict() | tokens


@pytest.mark.parametrize("part", ["encoder", "whole", "training"])
def test_mae(part, tmp_path):
    model, state = mae_state()
    if part == "encoder":  # mae_pretrain_vit_base.pth
        state = model.state_dict()
    content = {"model": state}
    if part == "training":
        content |= {"epoch": 799, "optimizer": {"state": {0: {"step": torch.ones(())}}}}
        content |= {"args": Namespace(mask_ratio=0.75), "scaler": {"scale": 65536.0}}
    torch.save(content, tmp_path / "mae.pth")
    encoder, account = encoder_from(tmp_path / "mae.pth", num_heads=4)
    more = set() if part == "encoder" else {"MAE's decoder", "mask token"}
    assert_whole(account, encoder, TAIL | CLS | more)
    assert read(tmp_path / "mae.pth").format == ("timm" if part == "encoder" else "mae")
    assert_same_features(encoder, model)


def test_mae_without_a_block_is_refused(tmp_path):
    _, state = mae_state()
    torch.save(state, tmp_path / "mae.pth")
    encoder = ViT(**encoder_words(read(tmp_path / "mae.pth")))
    torch.save({k: v for k, v in state.items() if "s.1.norm2" not in k}, tmp_path / "mae.pth")
    with pytest.raises(WeightsError, match=r"no norms: blocks.1.norm2.weight, blocks.1.norm2.bias"):
        load_encoder(encoder, tmp_path / "mae.pth")


@pytest.mark.parametrize("chunks", [1, 2])
@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("size", ["small", "giant"])
def test_dinov2_from_its_hub(size, registers, chunks, tmp_path):
    """The names of facebookresearch/dinov2; timm's own converter puts them into its model."""
    model = build(f"vit_{size}_patch14_{'reg4_' if registers else ''}dinov2", num_classes=0)
    state = model.state_dict()
    state["pos_embed"] = torch.randn(1, 26, 48)  # 5 x 5 and the cls token, none of registers
    state["mask_token"] = torch.randn(1, 48)
    if registers:
        state["register_tokens"] = state.pop("reg_token")
    model.load_state_dict(vision_transformer.checkpoint_filter_fn(dict(state), model))
    if size == "giant":
        for timms, own in ((".mlp.fc1.", ".mlp.w12."), (".mlp.fc2.", ".mlp.w3.")):
            state = {k.replace(timms, own): v for k, v in state.items()}
    if chunks > 1:  # each numbers its blocks on: blocks.0.0, blocks.0.1, blocks.1.2
        for i in range(3):
            chunked = f"blocks.{i // 2}.{i}."
            state = {k.replace(f"blocks.{i}.", chunked, 1): v for k, v in state.items()}
        assert "blocks.1.2.ls2.gamma" in state
    torch.save(state, tmp_path / "dinov2.pth")
    encoder, account = encoder_from(tmp_path / "dinov2.pth", num_heads=4)
    more = REGISTERS if registers else set()
    assert_whole(account, encoder, TAIL | CLS | LAYER_SCALE | {"mask token"} | more)
    assert read(tmp_path / "dinov2.pth").prefix == 1
    assert_same_features(encoder, model)


def test_deit3s_own_files(tmp_path):
    """facebookresearch/deit names LayerScale otherwise than timm, which reads it."""
    model = build("deit3_small_patch16_224")
    state = {k.replace(".ls1.gamma", ".gamma_1"): v for k, v in model.state_dict().items()}
    state = {k.replace(".ls2.gamma", ".gamma_2"): v for k, v in state.items()}
    filtered = vision_transformer.checkpoint_filter_fn(state, model, adapt_layer_scale=True)
    model.load_state_dict(filtered)
    torch.save({"model": state}, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"gamma_1: so have DeiT III's own files, and models"):
        read(tmp_path)  # see test_foreign.py: only this says that it is none of the others
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "deit3_small_patch16_224"}))
    encoder, account = encoder_from(tmp_path, num_heads=4)
    assert_whole(account, encoder, MODELS["deit3_small_patch16_224"][1])
    assert_same_features(encoder, model)


@pytest.mark.parametrize("content", ["teacher", "state_dict", "alone"])
@pytest.mark.parametrize(
    "heads",
    [
        ["head.mlp.0.weight", "head.mlp.0.bias", "head.last_layer.weight_g"],  # DINO
        ["head.mlp2.0.weight", "head.last_layer2.weight_v", "backbone.masked_embed"],  # iBOT
        ["dino_head.mlp.0.weight", "ibot_head.last_layer.weight_v"],  # DINOv2
        [],
    ],
)
def test_the_teacher_of_a_self_distillation(heads, content, tmp_path):
    """Encoder and heads side by side, as the trainings of DINO, iBOT and DINOv2 save them."""
    model = build("vit_tiny_patch16_224", num_classes=0)
    state = {f"backbone.{k}": v for k, v in model.state_dict().items()}
    state |= {key: torch.ones(1, 48) for key in heads}
    student = {f"module.{k}": torch.zeros_like(v) for k, v in state.items()}
    whole = {"student": student, "epoch": 3, "dino_loss": {"center": torch.ones(1, 8)}}
    torch.save(state if content == "alone" else whole | {content: state}, tmp_path / "dino.pth")
    encoder, account = encoder_from(tmp_path / "dino.pth", num_heads=4)
    more = {"head of self-distillation"} if heads else set()
    more |= {"mask token"} if "backbone.masked_embed" in heads else set()
    assert_whole(account, encoder, TAIL | CLS | more)
    assert_same_features(encoder, model)


def test_i_jepas_target_encoder(tmp_path):
    """Positions of patches alone, in the container of its training."""
    words = dict(class_token=False, global_pool="avg", fc_norm=False, num_classes=0)
    model = build("vit_tiny_patch16_224", **words)
    wrapped = {f"module.{k}": v for k, v in model.state_dict().items()}
    others = {name: {f"module.{name}": torch.ones(1)} for name in ("encoder", "predictor")}
    torch.save(others | {"target_encoder": wrapped, "epoch": 300}, tmp_path / "jepa.pth.tar")
    encoder, account = encoder_from(tmp_path / "jepa.pth.tar", num_heads=4)
    assert_whole(account, encoder, TAIL)
    assert_same_features(encoder, model)


# Activation by name, where the file's sizes show it; None: they do not, and the account says so.
SIGLIPS = {
    "vit_base_patch32_siglip_256": TanhGELU,
    "vit_large_patch16_siglip_512": TanhGELU,
    "vit_so400m_patch16_siglip_256": TanhGELU,
    "vit_so400m_patch16_siglip_gap_256": TanhGELU,
    "vit_giantopt_patch16_siglip_384": TanhGELU,
    "vit_base_patch16_siglip_224": None,
    "vit_large_patch16_siglip_256": None,
    "vit_so400m_patch14_siglip_384": None,
    "vit_base_patch16_siglip_gap_224": None,
    "vit_base_patch16_224": nn.GELU,
    "vit_small_patch14_reg4_dinov2": nn.GELU,
}


@pytest.mark.parametrize("name", SIGLIPS)
def test_activation_of_siglip(name):
    with torch.device("meta"):
        theirs = timm.create_model(name, depth=1)
    contents = FORMATS.get("timm")().convert(theirs.state_dict())
    assert contents.settings.get("act_layer", nn.GELU) == SIGLIPS[name]
    act = theirs.blocks[0].mlp.act
    tanh = getattr(act, "approximate", "") == "tanh" or "Tanh" in type(act).__name__
    assert tanh == (SIGLIPS[name] is TanhGELU)


def test_heads_that_the_sizes_do_not_tell():
    """Of two models with one layout, one has 12 heads and the other 16."""
    for name, heads in (("vit_base_patch16_gap_224", 16), ("vit_base_patch16_siglip_gap_224", 12)):
        with torch.device("meta"):
            theirs = timm.create_model(name, depth=1)
        assert theirs.blocks[0].attn.num_heads == heads
        assert known_heads(FORMATS.get("timm")().convert(theirs.state_dict())) is None


def test_siglip_computes_a_tanh_gelu(tmp_path):
    model = build("vit_base_patch32_siglip_256", embed_dim=768, img_size=160, depth=2)
    torch.save(model.state_dict(), tmp_path / "siglip.pth")
    encoder, _ = encoder_from(tmp_path / "siglip.pth", num_heads=4)
    assert isinstance(encoder.blocks[0].mlp.act, TanhGELU)
    image = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        found, expected = encoder(image)["last_feat"], patch_features(model, image)
    assert (found - expected).abs().max() <= 5e-6 * expected.abs().max()
    plain = ViT(
        **encoder_words(read(tmp_path / "siglip.pth")) | dict(num_heads=4, act_layer=nn.GELU)
    )
    notes = load_encoder(plain, tmp_path / "siglip.pth", show=str).notes
    assert "differs: act_layer is GELU here, TanhGELU in models of this format" in notes


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda s: s.pop("blocks.1.attn.v_bias"),
            "has blocks.1.attn.q_bias, but biases of q and v",
        ),
        (
            lambda s: s.pop("blocks.1.attn.q_bias"),
            "has blocks.1.attn.v_bias, but biases of q and v",
        ),
        (lambda s: s.update({"blocks.0.attn.v_bias": torch.ones(7)}), r"v_bias \(7,\)"),
        (lambda s: s.update({"blocks.0.attn.qkv.bias": torch.ones(144)}), "go together, alone"),
        (lambda s: s.update({"blocks.0.attn.k_bias": torch.ones(48)}), "in three, which are not"),
    ],
)
def test_biases_that_are_not_eva_01s(change, told, tmp_path):
    state = build("eva_giant_patch14_224").state_dict()
    change(state)
    torch.save(state, tmp_path / "eva.pth")
    with pytest.raises(WeightsError, match=told):
        read(tmp_path / "eva.pth")


def test_layer_scale_is_folded_exactly(tmp_path):
    """Folded in float64: the branch's output is the scaled one."""
    model = build("deit3_small_patch16_224").double()
    torch.save(model.state_dict(), tmp_path / "deit3.pth")
    contents = read(tmp_path / "deit3.pth")
    for i, block in enumerate(model.blocks):
        for linear, scale, key in (
            (block.attn.proj, block.ls1, "attn.proj"),
            (block.mlp.fc2, block.ls2, "mlp.fc2"),
        ):
            x = torch.randn(7, linear.in_features, dtype=torch.float64)
            weight = contents.encoder[f"blocks.{i}.{key}.weight"]
            bias = contents.encoder[f"blocks.{i}.{key}.bias"]
            torch.testing.assert_close(x @ weight.T + bias, scale(linear(x)))


# ---- samvit -------------------------------------------------------------------------------------

SAMVIT = dict(
    img_size=128, patch_size=8, embed_dim=48, depth=4, num_heads=4, window_size=5,
    global_attn_indexes=(1, 3), neck_chans=16,
)  # fmt: skip


@pytest.mark.parametrize("classes", [0, 5])
def test_samvit(classes, tmp_path):
    words = SAMVIT | dict(num_classes=classes, init_values=0.1 if classes else None)
    model = randomised(timm.create_model("samvit_base_patch16", **words))
    torch.save(model.state_dict(), tmp_path / "samvit.pth")
    encoder, account = encoder_from(tmp_path / "samvit.pth")
    assert read(tmp_path / "samvit.pth").format == "samvit"
    assert_whole(account, encoder, HEAD | LAYER_SCALE if classes else set())
    assert not account.resized
    assert not account.notes
    assert encoder.plan == ("window", "global", "window", "global")
    for size in ((128, 128), (96, 152)):
        image = torch.randn(2, 3, *size)
        with torch.no_grad():
            assert_close(encoder(image)["last_feat"], model.forward_features(image))


def test_samvit_without_neck_and_positions(tmp_path):
    words = SAMVIT | dict(neck_chans=None, num_classes=5)
    model = randomised(timm.create_model("samvit_base_patch16_224", **words))
    torch.save(model.state_dict(), tmp_path / "samvit.pth")
    encoder, account = encoder_from(tmp_path / "samvit.pth")
    assert_whole(account, encoder, HEAD | TAIL)
    for size in ((128, 128), (96, 152)):
        image = torch.randn(2, 3, *size)
        with torch.no_grad():
            expected = model.blocks(model.patch_embed(image)).permute(0, 3, 1, 2)
            assert_close(encoder(image)["last_feat"], expected)


def test_samvit_into_sam_and_back_to_its_keys(tmp_path):
    """SAM's encoder of this suite has samvit's tensors, all but the norms' epsilon; saved in its
    own keys, with the same neck, it is no samvit."""
    with torch.device("meta"):
        theirs = timm.create_model("samvit_base_patch16", num_classes=0).state_dict()
        ours = build_encoder("sam-vit-b").state_dict()
    theirs["pos_embed"] = theirs["pos_embed"].flatten(1, 2)
    assert {k: v.shape for k, v in theirs.items()} == {k: v.shape for k, v in ours.items()}

    model = randomised(timm.create_model("samvit_base_patch16", **SAMVIT, num_classes=0))
    torch.save(model.state_dict(), tmp_path / "samvit.pth")
    words = encoder_words(read(tmp_path / "samvit.pth"))
    encoder = ViT(**words | dict(norm_layer=partial(nn.LayerNorm, eps=1e-6)))
    account = load_encoder(encoder, tmp_path / "samvit.pth", show=str)
    assert account.notes == ["differs: norm_eps is 1e-06 here, 1e-05 in models of this format"]
    torch.save(encoder.state_dict(), tmp_path / "ours.pth")
    assert read(tmp_path / "ours.pth").format == "detectron2"


def test_samvit_without_a_tensor_is_refused(tmp_path):
    model = randomised(timm.create_model("samvit_base_patch16", **SAMVIT, num_classes=0))
    for key, told in (
        ("blocks.2.attn.rel_pos_w", "no relative positions: blocks.2.attn.rel_pos_w"),
        ("neck.3.bias", "no SAM's neck: neck.3.bias"),
        ("pos_embed", "no absolute positions: pos_embed"),
    ):
        assert told in refusal(model, lambda state, key=key: state.pop(key), tmp_path)


def test_samvit_without_relative_positions_is_refused(tmp_path):
    """It may have rotary ones instead, which leave no tensors."""
    words = SAMVIT | dict(num_classes=0, use_rel_pos=False, use_rope=True)
    torch.save(timm.create_model("samvit_base_patch16", **words).state_dict(), tmp_path / "s.pth")
    with pytest.raises(WeightsError, match="no relative positions, as SAM's encoder has"):
        read(tmp_path / "s.pth")


# ---- What ViT does not compute ------------------------------------------------------------------

OTHERS = {
    "vit_tiny_patch16_224 qk_norm": "blocks.0.attn.q_norm.weight: norms of queries and keys",
    "vit_tiny_patch16_224 scale_attn_norm": "blocks.0.attn.norm.weight: norms inside attention",
    "vit_tiny_patch16_224 scale_mlp_norm": "blocks.0.mlp.norm.weight: norms inside attention",
    "vit_dwee_patch16_reg1_gap_256": "blocks.0.attn.sub_norm.weight: norms inside attention",
    "aimv2_large_patch14_224": "patch_embed.norm.weight: another stem",
    "vit_tiny_r_s16_p8_224": "patch_embed.backbone.* another stem",
    "vit_small_patch16_rope_224": "no pos_embed: rotary positions",
    "vit_base_patch16_rope_reg1_gap_256": "no pos_embed: rotary positions",
    "vit_small_patch16_rope_mixed_ape_224": "rope.freqs: rotary positions",
    "vit_relpos_small_patch16_224": "rel_pos.mlp.* biases by relative position",
    "vit_srelpos_small_patch16_224": "shared_rel_pos.mlp.* biases by relative position",
    "beit_base_patch16_224": "relative_position_bias_table: biases by relative position",
    "vit_base_patch16_rpn_224": "fc_norm and no qkv.bias",
    "eva02_enormous_patch14_clip_224": "1792 channels, as EVA02-CLIP-E has",
    "hiera_base_abswin_256": r"pos_embed is \(1, 96, 14, 14\)",
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_vit_does_not_compute_is_refused(name):
    """By name, also when nothing is asked for strictly: these are other functions."""
    model, *word = name.split()
    words = dict(depth=2) if "hiera" not in model else {}
    with torch.device("meta"):
        state = timm.create_model(model, **words, **dict.fromkeys(word, True)).state_dict()
    known = {word: entry() for word, entry in FORMATS}
    assert [word for word, form in known.items() if form.recognises(state)] == ["timm"]
    with pytest.raises(WeightsError, match=OTHERS[name]) as caught:
        known["timm"].convert(state)
    assert "\n" not in str(caught.value)


PLAIN = [
    *("vision_transformer", "deit", "eva", "beit", "vision_transformer_sam", "naflexvit", "hiera"),
    *("vision_transformer_relpos", "vision_transformer_hybrid", "hieradet_sam2", "csatv2"),
    *("gemma4_vit", "qwen3_vit"),
]


def claimed(state: dict[str, torch.Tensor]):
    """What is read of a model's tensors; None if they are refused."""
    try:
        refuse_foreign(state)
        forms = [form() for _, form in FORMATS if form().recognises(state)]
        if len(forms) != 1:
            return None
        contents = forms[0].convert(state)
        forms[0].configure(contents, {})
        lost_or_more = own_encoder(contents).state_dict().keys() ^ contents.encoder.keys()
        return None if contents.doubt or lost_or_more else contents
    except WeightsError:
        return None


def assert_turns_as_told(theirs, told, block, name):
    """Rotary positions by what is read of a file: both or none, and the same tables."""
    assert (theirs is None) == (told is None), name
    if told is None:
        return
    rope = Rope(**dict(length=1) | told)
    channels = block.attn.head_dim
    turn = rope.turn(Partition(), (3, 5), channels, torch.zeros(1))
    with torch.device("cpu"):
        model = type(theirs)
        if model.__name__ == "RotaryEmbeddingDinoV3":
            kept = model(channels, temperature=theirs.temperature, rotate_half=theirs.rotate_half)
            sin, cos = kept.get_embed((3, 5)).chunk(2, -1)
            halves = theirs.rotate_half
        else:
            words = dict(in_pixels=False, ref_feat_shape=theirs.ref_feat_shape)
            words |= dict(grid_indexing=theirs.grid_indexing, temperature=theirs.temperature)
            sin, cos = build_rotary_pos_embed((3, 5), dim=channels, **words)
            halves = False
    assert rope.pairs == ("halves" if halves else "neighbours"), name
    for ours, table in zip(turn, (cos, sin), strict=True):
        table = table[:, : channels // 2] if halves else table[:, ::2]
        torch.testing.assert_close(ours.flatten(0, 2), table, rtol=0, atol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("module", PLAIN)
def test_each_of_timms_models_is_read_as_it_computes_or_refused(module):
    """What no tensor shows is right, or said to be unknown: rotary positions, order and kind of the
    blocks' layers, activation, heads, the norms' epsilon."""
    names = timm.list_models(module=module)
    assert names
    for name in names:
        with torch.device("meta"):
            try:
                model = timm.create_model(name, depth=2)
            except (TypeError, AssertionError, ValueError, IndexError):
                model = timm.create_model(name)
        contents = claimed(model.state_dict())
        if contents is None:
            continue
        block = model.blocks[0]
        assert type(block).__name__ in ("Block", "EvaBlock", "LayerScaleBlock"), name
        words = contents.settings
        assert_turns_as_told(getattr(model, "rope", None), words.get("rope"), block, name)
        assert block.norm1.eps == words["norm_eps"], name
        assert known_heads(contents) in (None, block.attn.num_heads), name
        if hasattr(block.mlp, "w1") or "blocks.0.mlp.w1.weight" in contents.encoder:
            assert isinstance(block.mlp.act, nn.SiLU), name
        elif (act := words.get("act_layer", nn.GELU)) is not None:
            x = torch.linspace(-3, 3, 50)
            torch.testing.assert_close(act()(x), block.mlp.act(x), rtol=0, atol=1e-6, msg=name)


def test_rms_norms_are_refused(tmp_path):
    torch.save(build("test_vit4").state_dict(), tmp_path / "model.pth")
    encoder = ViT(**encoder_words(read(tmp_path / "model.pth")))
    with pytest.raises(WeightsError, match=r"no norms: blocks.0.norm1.bias"):
        load_encoder(encoder, tmp_path / "model.pth")


def test_a_tensor_less_is_refused(tmp_path):
    model = build("deit3_small_patch16_224")
    for key, told in (
        ("blocks.2.norm1.weight", "no norms: blocks.2.norm1.weight"),
        ("blocks.1.attn.qkv.bias", "no attention: blocks.1.attn.qkv.bias"),
        ("blocks.0.mlp.fc1.bias", "no MLPs: blocks.0.mlp.fc1.bias"),
        ("blocks.1.ls2.gamma", "no blocks.1.ls2.gamma, though other blocks have LayerScale"),
        ("patch_embed.proj.bias", "no patch embedding: patch_embed.proj.bias"),
        ("pos_embed", "no pos_embed"),
    ):
        assert told in refusal(model, lambda state, key=key: state.pop(key), tmp_path)


def test_a_tensor_too_many_is_refused(tmp_path):
    model = build("vit_tiny_patch16_224")
    more = {"blocks.0.attn.gate.weight": torch.ones(48, 48)}
    told = refusal(model, lambda state: state.update(more), tmp_path)
    assert "unused attention: blocks.0.attn.gate.weight" in told


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ((1, 27, 48), "pos_embed has 27 entries"),
        ((26, 48), r"pos_embed is \(26, 48\), not \(1, positions, channels\)"),
        ((1, 26, 0), r"pos_embed is \(1, 26, 0\)"),
        ((), "no pos_embed"),
    ],
)
def test_positions_of_no_square_are_refused(shape, told, tmp_path):
    state = build("vit_tiny_patch16_224").state_dict() | {"pos_embed": torch.zeros(shape)}
    if not shape:
        del state["pos_embed"]
    torch.save(state, tmp_path / "vit.pth")
    with pytest.raises(WeightsError, match=told):
        read(tmp_path / "vit.pth")


def test_positions_that_fit_two_squares_are_refused(tmp_path):
    """3 x 3 patches, or 2 x 2 with a cls token and four registers: not guessed."""
    model = build("vit_small_patch14_reg4_dinov2", img_size=42)
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    with pytest.raises(WeightsError, match="pos_embed has 9 entries"):
        read(tmp_path / "vit.pth")
