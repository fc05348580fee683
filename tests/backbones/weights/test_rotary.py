"""DINOv3's, EVA-02's and Perception Encoder's files: timm's and transformers' models, and their own
layouts, against ours with their weights."""

import json
import re
from functools import partial

import pytest
import timm
import torch
import transformers
from detectron2.config import instantiate
from timm.layers import build_rotary_pos_embed
from timm.models import eva
from torch import nn

from backbones import SIZES, ViT, build_encoder
from backbones.weights import WeightsError, encoder_words, load_detector, load_encoder, read
from backbones.weights.writers import WRITERS, convert
from experiments.recipe import config
from tests.conftest import ROOT

from .test_transformers import assert_close, encoder_from, randomised

SMALL = dict(embed_dim=128, depth=3, num_heads=2, num_classes=0)
POOL = dict(attn_pool_num_heads=2)
# Model of timm: its words beside those, and the format of its file.
MODELS = {
    "vit_small_patch16_dinov3": ({}, "dinov3"),
    "vit_small_patch16_dinov3_qkvb": ({}, "dinov3"),
    "vit_small_plus_patch16_dinov3_qkvb": ({}, "dinov3"),
    "vit_7b_patch16_dinov3": ({}, "dinov3"),
    "vit_small_patch16_lingbot": ({}, "dinov3"),
    "eva02_tiny_patch14_224": ({}, "eva02"),
    "eva02_base_patch14_448": ({}, "eva02"),
    "vit_pe_core_tiny_patch16_384": (POOL, "pe"),
    "vit_pe_core_gigantic_patch14_448": (POOL, "pe"),
    "vit_pe_spatial_tiny_patch16_512": ({}, "pe"),
    "vit_pe_spatial_gigantic_patch14_448": ({}, "pe"),
    "vit_pe_lang_large_patch14_448": ({}, "pe"),
}


@pytest.fixture(autouse=True)
def _positions_without_antialiasing(monkeypatch):
    """As in test_timm."""
    resample = partial(eva.resample_abs_pos_embed, antialias=False)
    monkeypatch.setattr(eva, "resample_abs_pos_embed", resample)


def build(name: str, **words) -> nn.Module:
    """Of 5 x 5 patches, which is what rotary positions of tokens are of, but EVA-02's 16."""
    patch = 14 if "patch14" in name else 16
    more, form = MODELS[name]
    words = SMALL | dict(img_size=5 * patch, dynamic_img_size=True) | more | words
    if form == "pe":
        words["ref_feat_shape"] = (5, 5)
    return randomised(timm.create_model(name, **words))


def patch_features(model: nn.Module, image: torch.Tensor, registers: bool = False) -> torch.Tensor:
    """The patch tokens through the model's own blocks, beside its registers or alone."""
    patches = model.patch_embed(image)
    x, turn = model._pos_embed(patches)[:2]
    first = model.num_prefix_tokens
    kept = model.reg_token.shape[1] if registers else 0
    x = model.norm_pre(x[:, first - kept :])
    for block in model.blocks:
        block.attn.num_prefix_tokens = kept
        x = block(x, rope=turn)
        block.attn.num_prefix_tokens = first
    return x[:, kept:].transpose(1, 2).unflatten(2, patches.shape[1:3])


def assert_same_features(encoder: ViT, model: nn.Module, **words):
    patch = encoder.patch_embed.patch_size
    for rows, columns in ((5, 5), (3, 7)):
        image = torch.randn(2, 3, rows * patch, columns * patch)
        with torch.no_grad():
            found = encoder.eval()(image)["last_feat"]
            assert_close(found, patch_features(model, image, **words))


def assert_loaded(account, encoder):
    assert not account.missing
    assert not account.unexpected
    assert not account.new
    weights = {key for key in encoder.state_dict() if not key.startswith("unseen.")}
    assert account.loaded.keys() | account.resized.keys() == weights
    assert not any("differs" in note for note in account.notes)


@pytest.mark.parametrize("name", MODELS)
def test_timms_models(name, tmp_path):
    model = build(name)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    contents = read(tmp_path / "model.pth")
    assert contents.format == MODELS[name][1]
    encoder, account = encoder_from(tmp_path / "model.pth", num_heads=2)
    assert_loaded(account, encoder)
    assert encoder.blocks[0].norm1.eps == model.blocks[0].norm1.eps
    assert_same_features(encoder, model)
    assert encoder_words(contents)["num_heads"] == 2


@pytest.mark.parametrize(
    "name", ["vit_small_plus_patch16_dinov3_qkvb", "vit_pe_spatial_gigantic_patch14_448"]
)
def test_layer_scale_is_folded_or_kept(name, tmp_path):
    """One function, two encoders: the one that has LayerScale trains it."""
    model = build(name)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    folded, account = encoder_from(tmp_path / "model.pth", num_heads=2)
    assert any("LayerScale" in why for why, _ in account.dropped.values())
    kept, account = encoder_from(tmp_path / "model.pth", num_heads=2, layer_scale=1.0)
    assert_loaded(account, kept)
    assert not any("LayerScale" in why for why, _ in account.dropped.values())
    assert torch.equal(kept.blocks[1].ls2.gamma, model.blocks[1].gamma_2)
    assert_same_features(kept, model)
    for encoder in (kept, folded):
        encoder.eval()
    image = torch.randn(1, 3, 80, 48)
    torch.testing.assert_close(
        kept(image)["last_feat"], folded(image)["last_feat"], rtol=1e-4, atol=1e-4
    )


def test_registers_are_loaded(tmp_path):
    """They do not turn, and see the map from no place."""
    model = build("vit_small_patch16_dinov3_qkvb")
    torch.save(model.state_dict(), tmp_path / "model.pth")
    encoder, account = encoder_from(tmp_path / "model.pth", num_heads=2, registers=4)
    assert_loaded(account, encoder)
    assert torch.equal(encoder.registers, model.reg_token)
    assert_same_features(encoder, model, registers=True)


def test_biases_of_k_come_and_go(tmp_path):
    """An encoder whose k has a bias gets zeros."""
    model = build("vit_small_patch16_dinov3_qkvb")
    torch.save(model.state_dict(), tmp_path / "model.pth")
    encoder, account = encoder_from(tmp_path / "model.pth", num_heads=2, qkv_bias=True)
    assert_loaded(account, encoder)
    assert (encoder.blocks[0].attn.qkv.bias[128:256] == 0).all()
    assert_same_features(encoder, model)


def test_biases_that_are_zero_are_left_out(tmp_path):
    """DINOv3's 7B has none of q and v either, and so has its size; others are refused."""
    model = build("vit_7b_patch16_dinov3")
    torch.save(model.state_dict(), tmp_path / "model.pth")
    encoder, account = encoder_from(tmp_path / "model.pth", num_heads=2, qkv_bias=False)
    assert_loaded(account, encoder)
    assert_same_features(encoder, model)
    torch.save(build("vit_small_patch16_dinov3_qkvb").state_dict(), tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=r"unused attention: blocks\.0\.attn\.qkv\.bias"):
        encoder_from(tmp_path / "model.pth", num_heads=2, qkv_bias=False)


def test_an_encoder_that_turns_is_told_of_files_that_may_not(tmp_path):
    torch.save(build_encoder("vit-ti", depth=1, count=1).state_dict(), tmp_path / "vit.pth")
    for positions, told in (("learned", False), ("learned+rope", True)):
        encoder = build_encoder("vit-ti", depth=1, count=1, positions=positions)
        account = load_encoder(encoder, tmp_path / "vit.pth", show=str)
        assert any("rotary positions" in note for note in account.notes) == told


# ---- Their own layouts -------------------------------------------------------------------------


def own_dinov3(model: nn.Module, masked: bool = True) -> dict[str, torch.Tensor]:
    """facebookresearch/dinov3's keys: a bias of k that a mask leaves out, and periods."""
    state = {}
    for key, tensor in model.state_dict().items():
        key = re.sub(r"\.gamma_([12])$", r".ls\1.gamma", key).replace("reg_token", "storage_tokens")
        for theirs, ours in (("fc1_g", "w1"), ("fc1_x", "w2")):
            key = key.replace(f".mlp.{theirs}.", f".mlp.{ours}.")
        if hasattr(model.blocks[0].mlp, "fc1_g"):
            key = key.replace(".mlp.fc2.", ".mlp.w3.")
        state[key] = tensor
    for i in range(len(model.blocks)):
        front = f"blocks.{i}.attn."
        q, v = (state.pop(f"{front}{name}_bias") for name in "qv")
        k = torch.full_like(q, 3.0 if masked else 0.0)
        state[f"{front}qkv.bias"] = torch.cat([q, k, v])
        if masked:
            mask = torch.cat([torch.ones_like(q), torch.zeros_like(q), torch.ones_like(q)])
            state[f"{front}qkv.bias_mask"] = mask
    state["rope_embed.periods"] = (100 ** (torch.arange(16) / 16)).bfloat16()
    state["mask_token"] = torch.zeros(1, 128)
    return state | {"local_cls_norm.weight": torch.ones(128), "cls_norm.weight": torch.ones(128)}


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(
    "name", ["vit_small_patch16_dinov3_qkvb", "vit_small_plus_patch16_dinov3_qkvb"]
)
def test_dinov3s_own(name, masked, tmp_path):
    model = build(name)
    torch.save(own_dinov3(model, masked), tmp_path / "dinov3.pth")
    encoder, account = encoder_from(tmp_path / "dinov3.pth", registers=4, layer_scale=1.0)
    assert read(tmp_path / "dinov3.pth").format == "dinov3"
    assert any("the file's periods are rounded" in note for note in account.notes)
    assert_loaded(account, encoder)
    assert_same_features(encoder, model, registers=True)


def test_dinov3s_that_is_none(tmp_path):
    state = own_dinov3(build("vit_small_patch16_dinov3_qkvb"))
    for change, told in (
        ({"rope_embed.periods": torch.arange(1.0, 17)}, "other frequencies than DINOv3's"),
        ({"rope_embed.periods": torch.ones(0)}, "other frequencies than DINOv3's"),
        (
            {"blocks.1.attn.qkv.bias_mask": torch.full((384,), torch.nan)},
            "no mask of zeros and one",
        ),
        ({"blocks.1.attn.qkv.bias": torch.ones(7)}, "no mask|does not fit"),
        ({"blocks.1.mlp.fc1.weight": torch.ones(3)}, "do(es)? not fit|shapes"),
    ):
        torch.save(state | change, tmp_path / "model.pth")
        with pytest.raises(WeightsError, match=told):
            encoder_from(tmp_path / "model.pth")


def own_eva02(model: nn.Module, packed: bool) -> dict[str, torch.Tensor]:
    """baaivision/EVA's keys, with what pre-training has around; those of ti and s are packed."""
    state = {}
    names = {"fc1_g": "w1", "fc1_x": "w2", "fc1": "w12", "fc2": "w3", "norm": "ffn_ln"}
    for key, tensor in model.state_dict().items():
        key = re.sub(r"\.mlp\.(\w+)\.", lambda m: f".mlp.{names[m[1]]}.", key)
        key = re.sub(r"\.([qv])_proj\.bias$", r".\1_bias", key)
        state[key] = tensor
    turn = model.rope.get_embed((5, 5)).chunk(2, -1)
    state |= {"rope.freqs_sin": turn[0], "rope.freqs_cos": turn[1]}
    state |= {"mask_token": torch.zeros(1, 1, 128), "lm_head.weight": torch.ones(9, 128)}
    assert any("w12" in key for key in state) == packed
    return state


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "eva02_base_patch14_448"])
def test_eva02s_own(name, tmp_path):
    model = build(name)
    state = own_eva02(model, packed="tiny" in name)
    torch.save({"module": state}, tmp_path / "eva02.pt")
    encoder, account = encoder_from(tmp_path / "eva02.pt")
    assert read(tmp_path / "eva02.pt").format == "eva02"
    assert_loaded(account, encoder)
    assert_same_features(encoder, model)
    assert encoder_words(read(tmp_path / "eva02.pt"))["mlp"].startswith("swiglu(hidden=341")
    state["rope.freqs_cos"] = state["rope.freqs_cos"] * 0.5
    torch.save({"module": state}, tmp_path / "eva02.pt")
    with pytest.raises(WeightsError, match="tables of rotary positions are others than EVA-02's"):
        read(tmp_path / "eva02.pt")


def own_pe(model: nn.Module, whole: bool) -> dict[str, torch.Tensor]:
    """facebookresearch/perception_models' keys."""
    state = {}
    names = (
        (r"^patch_embed\.proj\.", "conv1."),
        (r"^pos_embed$", "positional_embedding"),
        (r"^cls_token$", "class_embedding"),
        (r"^norm_pre\.", "ln_pre."),
        (r"^norm\.", "ln_post."),
        (r"^blocks\.", "transformer.resblocks."),
        (r"\.norm([12])\.", r".ln_\1."),
        (r"\.gamma_([12])$", r".ls_\1.gamma"),
        (r"\.attn\.qkv\.", ".attn.in_proj_"),
        (r"\.attn\.proj\.", ".attn.out_proj."),
        (r"\.mlp\.fc1\.", ".mlp.c_fc."),
        (r"\.mlp\.fc2\.", ".mlp.c_proj."),
        (r"^attn_pool\.latent$", "attn_pool.probe"),
    )
    for key, tensor in model.state_dict().items():
        for pattern, theirs in names:
            key = re.sub(pattern, theirs, key)
        if key in ("positional_embedding", "class_embedding"):
            tensor = tensor.reshape(-1, 128).squeeze(0)
        state[f"visual.{key}" if whole else key] = tensor
    text = {"transformer.resblocks.0.ln_1.weight": torch.ones(8), "logit_scale": torch.ones(())}
    text |= {"positional_embedding": torch.ones(4, 8), "ln_final.weight": torch.ones(8)}
    return state | text if whole else state


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", [name for name, (_, form) in MODELS.items() if form == "pe"])
def test_perception_encoders_own(name, whole, tmp_path):
    model = build(name)
    torch.save(own_pe(model, whole), tmp_path / "pe.pt")
    encoder, account = encoder_from(tmp_path / "pe.pt", num_heads=2)
    assert read(tmp_path / "pe.pt").format == "pe"
    assert_loaded(account, encoder)
    assert_same_features(encoder, model)


@pytest.mark.parametrize("folder", [True, False])
@pytest.mark.parametrize("gated", [True, False])
def test_transformers_dinov3(gated, folder, tmp_path):
    words = dict(hidden_size=128, num_hidden_layers=3, num_attention_heads=2, intermediate_size=96)
    words |= dict(num_register_tokens=4, image_size=80, patch_size=16, use_gated_mlp=gated)
    words["hidden_act"] = "silu" if gated else "gelu"
    model = randomised(transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**words)))
    path = tmp_path / "dinov3"
    if folder:
        model.save_pretrained(path)
    else:
        torch.save(model.state_dict(), path)
    assert read(path).format == "hf-dinov3"
    encoder, account = encoder_from(path, registers=4, layer_scale=1.0)
    assert_loaded(account, encoder)
    assert encoder.blocks[0].norm1.eps == model.config.layer_norm_eps
    for size in ((80, 80), (48, 112)):
        image = torch.randn(2, 3, *size)
        with torch.no_grad():
            tokens = model.embeddings(image)[:, 1:]
            out = model.model(tokens, position_embeddings=model.rope_embeddings(image))
            rows, columns = size[0] // 16, size[1] // 16
            expected = out.last_hidden_state[:, 4:].transpose(1, 2).unflatten(2, (rows, columns))
            assert_close(encoder(image)["last_feat"], expected)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (dict(rope_theta="100"), "config.json has rope_theta='100': ViT cannot say it"),
        (dict(use_gated_mlp=True, hidden_act="gelu"), "a gated MLP of another activation"),
        (dict(model_type="dinov3_convnext"), "model_type='dinov3_convnext': another model than"),
    ],
)
def test_a_config_that_vit_cannot_say(config, told, tmp_path):
    words = dict(hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=96)
    transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**words)).save_pretrained(tmp_path)
    own = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(own | config))
    with pytest.raises(WeightsError, match=told):
        read(tmp_path)


def test_other_frequencies_are_the_configs(tmp_path):
    words = dict(hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=96)
    config = transformers.DINOv3ViTConfig(**words, rope_theta=50.0)
    transformers.DINOv3ViTModel(config).save_pretrained(tmp_path)
    assert encoder_words(read(tmp_path))["positions"] == "rope(unit=side,base=50.0)"


# ---- Named sizes, and encoders that compute another function ------------------------------------


@pytest.mark.parametrize(
    ("size", "name", "words"),
    [
        ("dinov3-s", "vit_small_patch16_dinov3_qkvb", {}),
        ("eva02-ti", "eva02_tiny_patch14_224", {}),
        ("pe-core-ti", "vit_pe_core_tiny_patch16_384", {}),
        ("pe-spatial-ti", "vit_pe_spatial_tiny_patch16_512", {}),
        ("dinov2-s", "vit_small_patch14_dinov2", {}),
    ],
)
def test_files_of_the_releases_load_into_named_sizes(size, name, words, tmp_path):
    """At ViTDet's windows and 16 px, with all that the file has."""
    model = timm.create_model(name, num_classes=0, depth=2)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    encoder = build_encoder(size, depth=2, count=1, **words)
    accounts = []
    load_encoder(encoder, tmp_path / "model.pth", show=accounts.append)
    (account,) = accounts
    assert not account.missing | account.unexpected | account.new
    resized = {"patch_embed.proj.weight"} if "patch14" in name else set()
    assert account.resized.keys() == resized
    assert not any("differs" in note for note in account.notes)
    encoder.eval()(torch.randn(1, 3, 320, 256))


@pytest.mark.parametrize(
    ("positions", "told"),
    [
        ("learned", r"rotary positions: positions='rope\(unit=token,axes=xy\)', or 'learned\+rope"),
        ("learned+rope", "rotary positions: positions="),
        ("learned+rope(unit=token,length=5)", "rotary positions: positions="),  # rows first
        ("learned+rope(unit=token,axes=xy,length=6)", "are of 5 tokens along a side, here of 6"),
    ],
)
def test_an_encoder_that_turns_otherwise_is_refused(positions, told, tmp_path):
    torch.save(build("vit_pe_core_tiny_patch16_384").state_dict(), tmp_path / "pe.pth")
    words = encoder_words(read(tmp_path / "pe.pth")) | dict(positions=positions, num_heads=2)
    encoder = ViT(**words)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    with pytest.raises(WeightsError, match=told) as caught:
        load_encoder(encoder, tmp_path / "pe.pth", strict=False)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def test_clip_of_averaged_tokens_is_no_perception_encoder(tmp_path):
    """It has no norm behind the last block either, but one behind the average."""
    words = SMALL | dict(img_size=80, global_pool="avg")
    model = timm.create_model("vit_base_patch16_clip_224", **words)
    torch.save(model.state_dict(), tmp_path / "clip.pth")
    with pytest.raises(WeightsError, match=r"\(timm\): has norm_pre, but neither"):
        read(tmp_path / "clip.pth")


def test_other_files_do_not_load_into_other_parts(tmp_path):
    """LayerScale and gated MLPs of the encoder that the file has not."""
    plain = build_encoder("vit-ti", depth=1, count=1)
    torch.save(plain.state_dict(), tmp_path / "vit.pth")
    for words, told in (
        (dict(layer_scale=1.0), "no LayerScale: .* layer_scale decides"),
        (dict(qk_norm=True), "no norms of q and k: .* qk_norm decides"),
        (dict(mlp="swiglu"), "no MLPs: blocks.0.mlp.w1.weight.* mlp decides"),
    ):
        encoder = build_encoder("vit-ti", depth=1, count=1, **words)
        with pytest.raises(WeightsError, match=told):
            load_encoder(encoder, tmp_path / "vit.pth")


@pytest.mark.parametrize("words", [dict(mlp="swiglu(norm=true)", layer_scale=0.5, qk_norm=True)])
def test_our_own_files(words, tmp_path):
    ours = build_encoder("vit-ti", depth=2, count=1, qkv_bias="qv", **words)
    torch.save(ours.state_dict(), tmp_path / "own.pth")
    assert read(tmp_path / "own.pth").format == "detectron2"
    encoder, account = encoder_from(tmp_path / "own.pth")
    assert_loaded(account, encoder)
    again = build_encoder("vit-ti", depth=2, count=1, qkv_bias="qv", **words)
    load_encoder(again, tmp_path / "own.pth", show=str)
    assert all(torch.equal(v, ours.state_dict()[k]) for k, v in again.state_dict().items())


@pytest.mark.parametrize("to", WRITERS)
def test_what_turns_is_written_nowhere(to, tmp_path):
    """No reader of those files would know."""
    torch.save(build("eva02_tiny_patch14_224").state_dict(), tmp_path / "eva02.pth")
    with pytest.raises(WeightsError, match=f"{to} has no place for a eva02's rotary positions"):
        convert(read(tmp_path / "eva02.pth"), to, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- Files of this suite -----------------------------------------------------------------------

OWN = dict(depth=3, count=1, img_size=128, pretrain_img_size=128, window_size=4)


def own_file(path, **words):
    ours = build_encoder("vit-ti", **OWN, **words).eval()
    torch.save(ours.state_dict(), path)
    return ours


@pytest.mark.parametrize(
    "words",
    [
        dict(positions="rope"),
        dict(positions="rope(base=50,axes=xy)", propagation="shifted"),
        dict(positions="learned+rope(unit=token,coordinates=window)"),
        dict(positions_resize="tile"),
    ],
    ids=str,
)
def test_what_no_weight_shows_is_in_our_own_files(words, tmp_path):
    """The encoder that they are of is built from them, and no other takes them in silence."""
    own_file(tmp_path / "own.pth", **words)
    contents = read(tmp_path / "own.pth")
    ours = build_encoder("vit-ti", **OWN, **words).eval()
    account = load_encoder(ours, tmp_path / "own.pth", show=str)
    assert not account.notes
    assert_loaded(account, ours)
    if "propagation" not in words:
        theirs = ViT(**encoder_words(contents)).eval()
        theirs.load_state_dict(torch.load(tmp_path / "own.pth"))
        image = torch.randn(1, 3, 176, 128)
        assert torch.equal(theirs(image)["last_feat"], ours(image)["last_feat"])
    plain = build_encoder("vit-ti", **OWN)
    with pytest.raises(RuntimeError, match="unseen"):
        plain.load_state_dict(torch.load(tmp_path / "own.pth"))
    if "positions" in words:
        with pytest.raises(WeightsError, match="does not fit: its encoder has rotary positions"):
            load_encoder(plain, tmp_path / "own.pth", show=str)
    else:
        notes = load_encoder(plain, tmp_path / "own.pth", show=str).notes
        assert notes == ["differs: positions_resize is bicubic here, tile in models of this format"]


@pytest.mark.parametrize("strict", [True, False])
def test_torch_itself_loads_them_nowhere_else(strict, tmp_path):
    own_file(tmp_path / "own.pth", positions="rope")
    other = build_encoder("vit-ti", **OWN, positions="rope(coordinates=window)")
    with pytest.raises(ValueError, match="the weights are of an encoder with"):
        other.load_state_dict(torch.load(tmp_path / "own.pth"), strict=strict)


def test_plain_encoders_have_detectron2s_keys():
    """Nothing beside weights, whose files its strict loading takes."""
    assert not any("unseen" in key for key in build_encoder("vit-ti", **OWN).state_dict())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", "has no words"),
        ("{", "has no words"),
        ('{"rope": {"unit": "mile"}}', "unit='mile' is unknown"),
        ('{"rope": 3}', "has words of another kind"),
        ('{"windows": {"window": "ab"}}', "windows='a' does not fit"),
        ('{"windows": 3}', "has words of another kind"),
        ('{"num_heads": 0}', "num_heads=0 does not fit"),
        ('{"norm_eps": NaN}', "norm_eps=nan does not fit"),
        ('{"alibi": 1}', "has alibi, which this version does not know"),
    ],
)
def test_words_that_are_none(text, told, tmp_path):
    state = build_encoder("vit-ti", **OWN, positions="rope").state_dict()
    state["unseen._extra_state"] = torch.tensor(list(text.encode()), dtype=torch.uint8)
    torch.save(state, tmp_path / "own.pth")
    with pytest.raises(WeightsError, match=told):
        read(tmp_path / "own.pth")


def test_our_own_detector_with_windows_that_others_have_not(tmp_path):
    words = dict(positions="learned+rope(unit=token,coordinates=window)", pretrain_img_size=256)
    torch.save({"model": detector().state_dict()}, tmp_path / "own.pth")
    account = load_detector(detector(), tmp_path / "own.pth", show=str)
    assert not account.missing
    assert not account.notes
    for other in (dict(count=2), dict(propagation="shifted"), dict(window_size=8)):
        with pytest.raises(WeightsError, match=r"have windows of 16 tokens|have a|here none has"):
            load_detector(detector(**words, **other), tmp_path / "own.pth", show=str)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (dict(positions="rope"), "rotary positions"),
        (dict(positions_resize="tile"), "tiled positions"),
        (dict(layer_scale=1.0), "LayerScale"),
        (dict(mlp="swiglu"), "MLPs"),
        (dict(qk_norm=True), "norms of q and k"),
        (dict(registers=1), "registers"),
        (dict(pre_norm=True), "norm before the blocks"),
        (dict(stem="conv"), "patch embedding"),
        (dict(block_norm="batch"), "statistics of batch norms"),
        (dict(propagation="conv", conv_block="naive"), "bottleneck conv blocks only"),
    ],
    ids=str,
)
@pytest.mark.parametrize("to", ["detectron2", "hf"])
def test_what_a_reader_does_not_compute_is_not_written(words, what, to, tmp_path):
    """detectron2's checkpointer would leave it out, and go on."""
    own_file(tmp_path / "own.pth", **words)
    with pytest.raises(WeightsError, match=what):
        convert(read(tmp_path / "own.pth"), to, tmp_path / "out")


# ---- EVA-02-Det --------------------------------------------------------------------------------


def detector(**words) -> nn.Module:
    """Cascade Mask R-CNN as EVA-02-Det's, with a small EVA-02."""
    cfg = config.load(ROOT / "configs" / "coco" / "cascade_mask_rcnn_vit_b.py").model
    cfg.backbone.update(
        SIZES["eva02-b"]
        | dict(embed_dim=128, depth=3, num_heads=2, mlp="swiglu(hidden=341,norm=true)")
        | dict(img_size=320, use_rel_pos=False, count=1, window_size=16, square_pad=320)
        | words
    )
    return instantiate(cfg)


def as_eva02_det(model: nn.Module) -> dict[str, torch.Tensor]:
    """The keys that its detectors have, tables of rotary positions among them."""
    state, net = {}, model.backbone.net
    tables = {"win": 16, "glb": 20}
    for name, side in tables.items():
        words = dict(dim=64, in_pixels=False, ref_feat_shape=(16, 16))
        sin, cos = build_rotary_pos_embed((side, side), **words)
        tables[name] = {"freqs_sin": sin, "freqs_cos": cos}
        for part, table in tables[name].items():
            state[f"backbone.net.rope_{name}.{part}"] = table
    for i, block in enumerate(net.blocks):
        name = "glb" if block.attn.partition.is_global else "win"
        for part, table in tables[name].items():
            state[f"backbone.net.blocks.{i}.attn.rope.{part}"] = table
    for key, tensor in model.state_dict().items():
        if ".unseen." in key:
            continue  # this suite's own
        key = key.replace(".mlp.norm.", ".mlp.ffn_ln.")
        if key.endswith(".attn.qkv.weight"):
            for part, own in zip("qkv", tensor.chunk(3), strict=True):
                state[key.replace("qkv", f"{part}_proj")] = own
        elif key.endswith(".attn.qkv.bias"):
            for part, own in zip("qv", tensor.chunk(2), strict=True):
                state[key.replace("qkv.bias", f"{part}_bias")] = own
        else:
            state[key] = tensor
    return state


def test_eva02s_detectors(tmp_path):
    """Whole: windows and global blocks are seen from the tables, all else is detectron2's."""
    model = detector().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    path = tmp_path / "eva02_det.pth"
    torch.save({"model": as_eva02_det(model)}, path)
    contents = read(path)
    words = encoder_words(contents)
    assert contents.format == "eva02-det"
    assert (words["window_size"], words["window_block_indexes"]) == (16, [0, 1])
    assert words["positions"] == "learned+rope(unit=token,length=16,coordinates=window)"

    accounts = []
    again = detector().eval()
    load_detector(again, path, show=accounts.append)
    (account,) = accounts
    assert not account.missing | account.unexpected | account.new | account.resized
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key
    image = torch.randn(1, 3, 320, 320)
    with torch.no_grad():
        for level, features in model.backbone(image).items():
            assert torch.equal(features, again.backbone(image)[level])
    encoder, _ = encoder_from(path)
    with torch.no_grad():
        found = encoder(image)["last_feat"]
        assert_close(found, model.backbone.net(image)["last_feat"])
    with pytest.raises(WeightsError, match=r"positions='rope\(unit=token,coordinates=window\)'"):
        load_detector(detector(positions="learned+rope(unit=token)"), path)
    # Other windows, or other blocks with them: no tensor shows it.
    for other in (dict(window_size=10), dict(count=2), dict(placement="first")):
        with pytest.raises(WeightsError, match=r"blocks \[0, 1\] have windows of 16 tokens"):
            load_detector(detector(**other), path)
    encoder, account = encoder_from(path, window_size=10)
    assert [note for note in account.notes if "differs: its blocks [0, 1]" in note]


def test_windows_of_eva02s_detectors_are_timms_models(tmp_path):
    """An image of one window is what timm's EVA-02 computes, tables and all."""
    torch.manual_seed(0)
    model = detector(count=None, propagation="none", depth=2).eval()
    net = model.backbone.net
    theirs = timm.create_model(
        "eva02_base_patch14_224", patch_size=16, img_size=256, num_classes=0,
        embed_dim=128, depth=2, num_heads=2, dynamic_img_size=True,
    ).eval()  # fmt: skip
    state = as_eva02_det(model)
    own = {k.removeprefix("backbone.net."): v for k, v in state.items() if "rope" not in k}
    own = {k: v for k, v in own.items() if k in theirs.state_dict() or ".mlp." in k or "_bias" in k}
    for old, new in (("w1", "fc1_g"), ("w2", "fc1_x"), ("w3", "fc2"), ("ffn_ln", "norm")):
        own = {k.replace(f".mlp.{old}.", f".mlp.{new}."): v for k, v in own.items()}
    own = {re.sub(r"\.([qv])_bias$", r".\1_proj.bias", k): v for k, v in own.items()}
    missing, unexpected = theirs.load_state_dict(own, strict=False)
    assert not unexpected
    assert all(key.startswith(("cls_token", "norm", "fc_norm")) for key in missing)
    for windows in (1, 2):  # side by side, each for itself but for absolute positions
        image = torch.randn(1, 3, 256, 256)
        net.pos_embed.data.zero_()
        theirs.pos_embed.data.zero_()
        with torch.no_grad():
            expected = patch_features(theirs, image).repeat(1, 1, 1, windows)
            found = net(image.repeat(1, 1, 1, windows))["last_feat"]
        assert_close(found, expected)


# ---- PE-Det ------------------------------------------------------------------------------------


def pe_detector(**words) -> nn.Module:
    """Mask R-CNN as PE-Det's, with a small Perception Encoder in 6 x 6 places of windows of 6."""
    cfg = config.load(ROOT / "configs" / "coco" / "mask_rcnn_pe_spatial_g.py").model
    small = dict(embed_dim=128, depth=3, num_heads=2, mlp_ratio=2.0, pretrain_img_size=96)
    windows = dict(img_size=160, square_pad=160, window_size=6, window_block_indexes=[0, 1])
    cfg.backbone.update(small | windows | words)
    return instantiate(cfg)


class PeRope(nn.Module):
    """Perception Encoder's rotary positions in its detectors, from their description: places of a
    side scaled to the pre-training's tokens and counted from 1, columns first, neighbours turn."""

    def __init__(self, side: int, channels: int, length: int = 6):
        super().__init__()
        frequencies = 10_000.0 ** -(torch.arange(0, channels // 2, 2) / (channels // 2))
        angles = (torch.arange(side) / side * length + 1)[:, None] * frequencies
        angles = angles.repeat_interleave(2, 1)
        both = torch.broadcast_tensors(angles[None, :], angles[:, None])
        table = torch.cat(both, -1).flatten(0, 1)
        self.register_buffer("freqs_cos", table.cos())
        self.register_buffer("freqs_sin", table.sin())

    def forward(self, x_BMND):
        a, b = x_BMND.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack([-b, a], -1).flatten(-2)
        return x_BMND * self.freqs_cos + turned * self.freqs_sin


def as_pe_det(model: nn.Module) -> dict[str, torch.Tensor]:
    state = {}
    for key, tensor in model.state_dict().items():
        if ".unseen." in key or key.endswith("patch_embed.proj.bias"):
            continue
        for ours, theirs in (
            ("patch_embed.proj.", "conv1."),
            ("pos_embed", "positional_embedding"),
            ("norm_pre.", "ln_pre."),
            ("net.blocks.", "net.transformer.resblocks."),
            (".norm1.", ".ln_1."),
            (".norm2.", ".ln_2."),
            (".ls1.", ".ls_1."),
            (".ls2.", ".ls_2."),
            (".attn.qkv.", ".attn.in_proj_"),
            (".attn.proj.", ".attn.out_proj."),
            (".mlp.fc1.", ".mlp.c_fc."),
            (".mlp.fc2.", ".mlp.c_proj."),
        ):
            key = key.replace(ours, theirs) if key.startswith("backbone.net.") else key
        state[key] = tensor
    for i, block in enumerate(model.backbone.net.blocks):
        is_global = block.attn.partition.is_global
        for name, table in PeRope(10 if is_global else 6, 64).named_buffers():
            state[f"backbone.net.rope_{'glb' if is_global else 'win'}.{name}"] = table
            state[f"backbone.net.transformer.resblocks.{i}.attn.rope.{name}"] = table
    return state


def pe_map(state: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
    """What the file's encoder computes of an image of 160 px, from its description."""
    state = {k.removeprefix("backbone.net."): v for k, v in state.items()}
    x = nn.functional.conv2d(image, state["conv1.weight"], stride=16).permute(0, 2, 3, 1)
    grid = state["positional_embedding"].reshape(1, 6, 6, -1)
    x = x + grid.tile(1, 2, 2, 1)[:, :10, :10]

    def norm(x, name):
        words = (state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)
        return nn.functional.layer_norm(x, x.shape[-1:], *words)

    def linear(x, name, joint="."):
        return nn.functional.linear(x, state[f"{name}{joint}weight"], state[f"{name}{joint}bias"])

    x = norm(x, "ln_pre")
    for i in range(3):
        front, windowed = f"transformer.resblocks.{i}.", i < 2
        y = norm(x, f"{front}ln_1")
        if windowed:
            y = nn.functional.pad(y, (0, 0, 0, 2, 0, 2)).unflatten(2, (2, 6)).unflatten(1, (2, 6))
            y = y.transpose(2, 3).reshape(4, 36, -1)
        else:
            y = y.flatten(1, 2)
        qkv = linear(y, f"{front}attn.in_proj", "_").unflatten(-1, (3, 2, 64))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        rope = PeRope(6 if windowed else 10, 64)
        y = nn.functional.scaled_dot_product_attention(rope(q), rope(k), v)
        y = linear(y.transpose(1, 2).flatten(2), f"{front}attn.out_proj")
        if windowed:
            y = y.reshape(1, 2, 2, 6, 6, -1).transpose(2, 3).reshape(1, 12, 12, -1)[:, :10, :10]
        else:
            y = y.unflatten(1, (10, 10))
        x = x + y * state[f"{front}ls_1.gamma"]
        y = linear(norm(x, f"{front}ln_2"), f"{front}mlp.c_fc")
        y = linear(nn.functional.gelu(y), f"{front}mlp.c_proj")
        x = x + y * state[f"{front}ls_2.gamma"]
    return x.permute(0, 3, 1, 2)


def test_perception_encoders_detectors(tmp_path):
    model = pe_detector().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    model.backbone.net.patch_embed.proj.bias.data.zero_()
    path = tmp_path / "mask_rcnn_PEspatial_G_coco36ep.pth"
    state = as_pe_det(model)
    torch.save({"model": state}, path)
    contents = read(path)
    words = encoder_words(contents)
    assert contents.format == "pe-det"
    assert (words["window_size"], words["window_block_indexes"]) == (6, [0, 1])
    assert (words["positions_resize"], words["num_heads"]) == ("tile", 2)
    again = pe_detector().eval()
    account = load_detector(again, path, show=str)
    assert not account.missing | account.unexpected | account.new | account.resized
    assert not any("differs" in note for note in account.notes)
    image = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        for level, features in model.backbone(image).items():
            assert torch.equal(features, again.backbone(image)[level])
        assert_close(again.backbone.net(image)["last_feat"], pe_map(state, image))
    with pytest.raises(WeightsError, match="its encoder has rotary positions"):
        load_detector(pe_detector(positions="learned+rope(unit=token,axes=xy)"), path, show=str)
    with pytest.raises(WeightsError, match=r"blocks \[0, 1\] have windows of 6 tokens"):
        load_detector(pe_detector(window_block_indexes=[0]), path, show=str)
    state["backbone.net.rope_glb.freqs_cos"] *= 0.5
    name = "backbone.net.transformer.resblocks.2.attn.rope.freqs_cos"
    state[name] = state[name] * 0.5
    torch.save({"model": state}, path)
    with pytest.raises(WeightsError, match="positions are others than PE-Det's"):
        read(path)
