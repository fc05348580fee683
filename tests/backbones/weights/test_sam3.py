"""SAM 3's image encoder: transformers' model against ours with its weights, in transformers' files
and, by renamed keys, in facebookresearch/sam3's own.

transformers turns global blocks by tables for one size of map; of a map that is no square it scales
both sides by one of them. Where the sides differ here, its places are set to each side's own.
"""

import json
import re

import pytest
import torch
import transformers
from torch import nn

from backbones import build_encoder
from backbones.weights import WeightsError, encoder_words, load_encoder, read

from .test_transformers import assert_close, encoder_from, randomised

VIT = dict(hidden_size=64, intermediate_size=296, num_hidden_layers=4, num_attention_heads=2)
VIT |= dict(image_size=24, patch_size=2, pretrain_image_size=8)
VIT |= dict(window_size=4, global_attn_indexes=[1, 3])  # 12 x 12 tokens
AROUND = "what SAM 3 has around its image encoder"


def build(**words) -> transformers.Sam3ViTModel:
    return randomised(transformers.Sam3ViTModel(transformers.Sam3ViTConfig(**VIT | words)))


def features(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
    rows, columns = (side // model.config.patch_size for side in image.shape[2:])
    with torch.no_grad():
        out = model(image).last_hidden_state
    return out.transpose(1, 2).unflatten(2, (rows, columns))


def assert_same_features(encoder: nn.Module, model: nn.Module, *size: int):
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        assert_close(encoder(image)["last_feat"], features(model, image))


def assert_whole(account, encoder):
    assert not account.missing | account.unexpected | account.new | account.resized
    weights = {key for key in encoder.state_dict() if not key.startswith("unseen.")}
    assert account.loaded.keys() == weights
    assert not any("differs" in note for note in account.notes)


# ---- transformers ------------------------------------------------------------------------------

WORDS = {
    "native": ({}, (24, 24), "length=4,coordinates=window"),
    "windows filled up": (dict(image_size=20), (20, 20), "length=4,coordinates=window"),
    "no global block, no square": (
        dict(global_attn_indexes=[]),
        (20, 28),
        "length=4,coordinates=window",
    ),
    "global blocks alone": (dict(global_attn_indexes=[0, 1, 2, 3]), (24, 24), "length=4"),
    "another base": (
        dict(rope_parameters=dict(rope_type="axial", rope_theta=50.0)),
        (24, 24),
        "length=4,coordinates=window,base=50.0",
    ),
    "activation and epsilon": (
        dict(hidden_act="quick_gelu", layer_norm_eps=1e-2, layer_scale_init_value=0.1),
        (24, 24),
        "length=4,coordinates=window",
    ),
}


@pytest.mark.parametrize("case", WORDS)
def test_transformers(case, tmp_path):
    words, size, rope = WORDS[case]
    model = build(**words)
    model.save_pretrained(tmp_path)
    contents = read(tmp_path)
    assert contents.format == "hf-sam3"
    assert encoder_words(contents)["positions"] == f"learned+rope(unit=token,axes=xy,{rope})"
    encoder, account = encoder_from(tmp_path)
    assert_whole(account, encoder)
    assert account.notes == ["the bias of the patch embedding is zero: the file has none"]
    assert not account.dropped
    assert_same_features(encoder, model, *size)


def test_a_map_that_is_no_square(tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    rows, columns = 10, 14
    x, y = (torch.arange(n) * (4 / n) for n in (columns, rows))
    places = torch.stack([x.repeat(rows), y.repeat_interleave(columns)], -1)
    for i in (1, 3):
        model.layers[i].position_ids = places
    encoder, _ = encoder_from(tmp_path)
    assert_same_features(encoder, model, 2 * rows, 2 * columns)


def test_without_a_config_it_is_the_releases(tmp_path):
    """Windows of 24 tokens in all blocks but four."""
    words = dict(num_attention_heads=1, window_size=24, pretrain_image_size=48)
    model = build(**words, num_hidden_layers=8, global_attn_indexes=None, image_size=60)
    torch.save(model.state_dict(), tmp_path / "sam3.pth")
    encoder, account = encoder_from(tmp_path / "sam3.pth")
    assert_whole(account, encoder)
    words = encoder_words(read(tmp_path / "sam3.pth"))
    assert words["window_block_indexes"] == [0, 1, 2, 3, 4, 5, 6]
    assert_same_features(encoder, model, 60, 60)


TINY = dict(hidden_size=8, intermediate_size=16, num_attention_heads=2, num_layers=1)
TEXT = dict(hidden_size=8, intermediate_size=16, projection_dim=8, num_hidden_layers=1)
TEXT |= dict(vocab_size=9, num_attention_heads=2, max_position_embeddings=4)
VISION = dict(backbone_config=dict(VIT, model_type="sam3_vit_model"), fpn_hidden_size=8)
DETECTOR = dict(vision_config=VISION, text_config=dict(TEXT, model_type="clip_text_model"))
DETECTOR |= {f"{part}_config": TINY for part in ("geometry_encoder", "detr_encoder")}
DETECTOR |= dict(detr_decoder_config=TINY)
DETECTOR |= dict(mask_decoder_config=dict(hidden_size=8, num_attention_heads=2))
LITE = DETECTOR | dict(text_config=dict(TEXT, use_repmixer_blocks=False))
TRACKER = dict(vision_config=VISION | dict(fpn_hidden_size=256))
VIDEO = dict(
    detector_config=dict(DETECTOR, model_type="sam3"),
    tracker_config=dict(TRACKER, model_type="sam3_tracker_video"),
)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Sam3VisionModel", VISION),
        ("Sam3Model", DETECTOR),
        ("Sam3LiteTextModel", LITE),
        ("Sam3TrackerModel", TRACKER),
        ("Sam3TrackerVideoModel", TRACKER | dict(image_size=24)),
        ("Sam3VideoModel", VIDEO),
    ],
)
def test_in_whole_models_of_transformers(name, words, tmp_path):
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**words)).eval()
    model.save_pretrained(tmp_path)
    encoder, account = encoder_from(tmp_path)
    assert read(tmp_path).format == "hf-sam3"
    assert_whole(account, encoder)
    assert {why for why, _ in account.dropped.values()} == {AROUND}
    (trunk,) = (m for m in model.modules() if isinstance(m, transformers.Sam3ViTModel))
    assert_same_features(encoder, trunk, 24, 24)


def test_a_config_inside_anothers_may_say_what_differs_alone(tmp_path):
    """16 heads are transformers' own, and no word of a model inside another that has them."""
    words = dict(VISION["backbone_config"], num_attention_heads=16)
    config = transformers.Sam3VisionConfig(**VISION | dict(backbone_config=words))
    model = transformers.Sam3VisionModel(config).eval()
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    said = json.loads(file.read_text())
    said["backbone_config"].pop("num_attention_heads", None)
    file.write_text(json.dumps(said))
    encoder, account = encoder_from(tmp_path)
    assert encoder.blocks[0].attn.num_heads == 16
    assert_whole(account, encoder)
    assert_same_features(encoder, model.backbone, 24, 24)


def with_config(folder, **words):
    build().save_pretrained(folder)
    own = json.loads((folder / "config.json").read_text())
    said = {k: v for k, v in (own | words).items() if v != "none"}
    (folder / "config.json").write_text(json.dumps(said))
    return folder


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (dict(window_size=0), "window_size=0: ViT cannot say it"),
        (dict(window_size="all"), "window_size='all': ViT cannot say it"),
        (dict(global_attn_indexes=[-1]), r"global_attn_indexes=\[-1\]: ViT cannot say it"),
        (dict(global_attn_indexes="all"), "global_attn_indexes='all': ViT cannot say it"),
        (dict(rope_parameters=dict(rope_type="linear")), "rope_parameters={'rope_type': 'linear'}"),
        (dict(rope_parameters=3), "rope_parameters=3: ViT cannot say it"),
        (dict(rope_parameters=dict(rope_theta=0.5)), "rope_theta=0.5: ViT cannot say it"),
        (dict(rope_parameters=dict(rope_theta=float("nan"))), "rope_theta=nan: ViT cannot say it"),
        (dict(rope_parameters="none", rope_theta="1"), "rope_theta='1': ViT cannot say it"),
        (dict(image_size=[24, 32]), r"image_size=\[24, 32\]: global blocks scale both sides"),
        (dict(hidden_act="swish"), "hidden_act='swish': ViT cannot say it"),
        (dict(layer_norm_eps=0), "layer_norm_eps=0: ViT cannot say it"),
        (dict(num_attention_heads=None), "num_attention_heads=None: ViT cannot say it"),
        (dict(model_type="sam3_vit"), "model_type='sam3_vit': another model than transformers Sam"),
    ],
    ids=str,
)
def test_a_config_that_vit_cannot_say(words, told, tmp_path):
    with pytest.raises(WeightsError, match=rf"\(hf-sam3\): config\.json has {told}") as caught:
        read(with_config(tmp_path, **words))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        dict(rope_parameters="none", rope_theta=50),
        dict(image_size=[24, 24], rope_parameters=dict(rope_theta=50)),
        dict(hidden_dropout=0.1, rope_parameters=dict(rope_type="axial", rope_theta=50)),
    ],
    ids=str,
)
def test_other_words_for_the_same(words, tmp_path):
    contents = read(with_config(tmp_path, **words))
    assert encoder_words(contents)["positions"].endswith("coordinates=window,base=50)")
    told = "hidden_dropout=0.1 of its config.json is left out"
    assert (told in contents.notes) == ("hidden_dropout" in words)


# ---- Its authors' own layout -------------------------------------------------------------------


def table(side: int, channels: int, length: int) -> torch.Tensor:
    """Of a square map: columns turn first, places are counted and scaled to `length`."""
    frequencies = 10_000.0 ** -(torch.arange(0, channels, 4) / channels)
    places = torch.arange(side) * (length / side)
    x, y = places.repeat(side), places.repeat_interleave(side)
    angles = torch.cat([x[:, None] * frequencies, y[:, None] * frequencies], 1)
    return torch.polar(torch.ones_like(angles), angles)


def own(model: nn.Module, front: str = "") -> dict[str, torch.Tensor]:
    """The encoder's weights by facebookresearch/sam3's keys, tables among them."""
    config, state = model.config, {}
    for key, tensor in model.state_dict().items():
        for theirs, ours in (
            ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
            ("embeddings.position_embeddings", "pos_embed"),
            ("layers.", "blocks."),
            ("layer_norm1.", "norm1."),
            ("layer_norm2.", "norm2."),
            ("layer_norm.", "ln_pre."),
            ("attention.o_proj.", "attn.proj."),
            ("attention.q_proj.", "attn.qkv."),
        ):
            key = key.replace(theirs, ours)
        if ".attn.qkv." in key:
            block, part = re.match(r"blocks\.(\d+)\..*\.(\w+)$", key).groups()
            attention = model.layers[int(block)].attention
            projections = (attention.q_proj, attention.k_proj, attention.v_proj)
            tensor = torch.cat([getattr(p, part).detach() for p in projections])
        if "attention." not in key:
            state[front + key] = tensor.clone()
    cls_token = torch.randn(1, 1, config.hidden_size)
    state[f"{front}pos_embed"] = torch.cat([cls_token, state[f"{front}pos_embed"]], 1)
    whole = config.image_size // config.patch_size
    channels = config.hidden_size // config.num_attention_heads
    for i, layer in enumerate(model.layers):
        state[f"{front}blocks.{i}.attn.freqs_cis"] = table(
            layer.window_size or whole, channels, config.window_size
        )
    return state


def around(front: str) -> dict[str, torch.Tensor]:
    """What a whole model has beside the encoder."""
    names = (
        "backbone.vision_backbone.convs.0.conv_1x1.weight",
        "backbone.vision_backbone.sam2_convs.0.dconv_2x2_0.weight",
        "backbone.language_backbone.encoder.transformer.resblocks.0.ln_1.weight",
        "backbone.language_backbone.encoder.ln_final.weight",
        "transformer.encoder.layers.0.norm1.weight",
    )
    state = {f"{front}{name}": torch.ones(2) for name in names}
    return state | {"tracker.maskmem_backbone.fuser.layers.0.gamma": torch.ones(2)}


FRONTS = ("detector.", "sam3_model.", "")
TRUNK = "backbone.vision_backbone.trunk."


@pytest.mark.parametrize("front", [*FRONTS, "trunk.", "alone"])
def test_its_authors_own(front, tmp_path):
    model = build(layer_norm_eps=1e-5)
    if front in FRONTS:
        state = own(model, front + TRUNK) | around(front)
    else:
        state = own(model, "" if front == "alone" else front)
    torch.save({"model": state}, tmp_path / "sam3.pt")
    contents = read(tmp_path / "sam3.pt")
    words = encoder_words(contents)
    assert contents.format == "sam3"
    assert (words["window_size"], words["window_block_indexes"]) == (4, [0, 2])
    rope = "rope(unit=token,axes=xy,length=4,coordinates=window)"
    assert (words["positions"], words["num_heads"]) == (f"learned+{rope}", 2)
    assert words["norm_layer"].keywords["eps"] == 1e-5
    encoder, account = encoder_from(tmp_path / "sam3.pt")
    assert_whole(account, encoder)
    reasons = {why for why, _ in account.dropped.values()}
    assert (AROUND in reasons) == (front in FRONTS)
    assert_same_features(encoder, model, 24, 24)
    assert torch.equal(encoder.pos_embed, state[next(k for k in state if k.endswith("pos_embed"))])


def test_tables_as_real_numbers_are_left_out_too(tmp_path):
    """Beside the complex ones, as SAM 3.1's code keeps them."""
    state = own(build())
    for key in [k for k in state if "freqs_cis" in k]:
        parts = torch.view_as_real(state[key]).clone().unbind(-1)
        state |= {f"{key}_{name}": part for name, part in zip(("real", "imag"), parts, strict=True)}
    torch.save(state, tmp_path / "sam3.pt")
    encoder, account = encoder_from(tmp_path / "sam3.pt")
    assert_whole(account, encoder)
    torch.save({k: v for k, v in state.items() if not v.is_complex()}, tmp_path / "sam3.pt")
    with pytest.raises(WeightsError, match="has 0 tables of rotary positions for 4 blocks"):
        read(tmp_path / "sam3.pt")


def test_without_tables_it_is_the_releases(tmp_path):
    words = dict(num_attention_heads=1, window_size=24, pretrain_image_size=48, layer_norm_eps=1e-5)
    model = build(**words, global_attn_indexes=[])
    state = {k: v for k, v in own(model).items() if "freqs" not in k}
    torch.save(state, tmp_path / "sam3.pt")
    encoder, account = encoder_from(tmp_path / "sam3.pt")
    assert_whole(account, encoder)
    assert encoder_words(read(tmp_path / "sam3.pt"))["window_block_indexes"] == [0, 1, 2, 3]
    assert_same_features(encoder, model, 60, 40)


def test_layer_scale_is_folded_or_kept(tmp_path):
    model = build(layer_norm_eps=1e-5)
    state = own(model)
    for i, layer in enumerate(model.layers):
        for name, linear in (("ls1", layer.attention.o_proj), ("ls2", layer.mlp.fc2)):
            gamma = state[f"blocks.{i}.{name}.gamma"] = torch.rand(64) + 0.5
            linear.weight.data *= gamma[:, None]
            linear.bias.data *= gamma
    torch.save(state, tmp_path / "sam3.pt")
    for words in ({}, dict(layer_scale=1.0)):
        encoder, account = encoder_from(tmp_path / "sam3.pt", **words)
        assert_whole(account, encoder)
        assert_same_features(encoder, model, 24, 24)


@pytest.mark.parametrize(
    ("block", "change", "told"),
    [
        (2, lambda t: t * 0.5, "others than SAM 3's"),
        (2, lambda t: t.conj().resolve_conj(), "others than SAM 3's"),  # the other way round
        (2, lambda t: torch.cat(t.chunk(2, 1)[::-1], 1), "others than SAM 3's"),  # rows first
        (2, lambda t: t.real, "others than SAM 3's"),
        (2, lambda t: t.real.long(), "others than SAM 3's"),
        (2, lambda t: t[:5], "others than SAM 3's"),
        (2, lambda t: t[:0], "others than SAM 3's"),
        (2, lambda t: t[0, 0], "others than SAM 3's"),
        (2, lambda t: t[:, :3], "others than SAM 3's"),
        (2, lambda t: t * torch.nan, "others than SAM 3's"),
        (1, lambda t: table(12, 32, 12), "others than SAM 3's"),  # not scaled
        (3, lambda t: table(12, 32, 12), "others than SAM 3's"),
        (3, lambda t: None, "has 3 tables of rotary positions for 4 blocks"),
    ],
)
def test_other_tables_are_refused(block, change, told, tmp_path):
    state = own(build())
    key = f"blocks.{block}.attn.freqs_cis"
    state[key] = change(state[key])
    torch.save({k: v for k, v in state.items() if v is not None}, tmp_path / "sam3.pt")
    with pytest.raises(WeightsError, match=rf"sam3\.pt \(sam3\): .*{told}") as caught:
        read(tmp_path / "sam3.pt")
    assert "\n" not in str(caught.value)


def test_other_files_are_refused(tmp_path):
    path, state = tmp_path / "sam3.pt", own(build(), f"detector.{TRUNK}")
    again = {k.replace("detector", "tracker"): v for k, v in state.items()}
    positions, complex_weight = f"detector.{TRUNK}pos_embed", torch.ones(3, dtype=torch.complex64)
    for changed, told in (
        (state | again, f"has image encoders in detector.{TRUNK} and in tracker.{TRUNK}"),
        ({k: v for k, v in state.items() if "ln_pre" not in k}, "its format is none of"),
        ({k: v for k, v in state.items() if k != positions}, "has no absolute positions"),
        (state | {positions: torch.ones(1, 8, 64)}, "no square of patches"),
        (state | {f"detector.{TRUNK}blocks.0.attn.w": complex_weight}, "attn.w is complex64"),
        (state | {"tracker.freqs": complex_weight}, "tracker.freqs is complex64"),
    ):
        torch.save(changed, path)
        with pytest.raises(WeightsError, match=re.escape(told)):
            read(path)
    torch.save(state | {f"detector.{TRUNK}blocks.0.attn.gate": torch.ones(2)}, path)
    with pytest.raises(WeightsError, match=r"unused .*: blocks\.0\.attn\.gate"):
        encoder_from(path)


def test_complex_tables_of_other_files_are_no_weights(tmp_path):
    state = build_encoder("vit-ti", depth=1, count=1).state_dict()
    state = {f"backbone.net.{k}": v for k, v in state.items()}
    state["backbone.net.blocks.0.attn.freqs_cis"] = table(14, 64, 14)
    torch.save(state, tmp_path / "vit.pth")
    with pytest.raises(WeightsError, match=r"freqs_cis is complex64, not dense floating-point"):
        read(tmp_path / "vit.pth")


# ---- The named size ----------------------------------------------------------------------------


def test_the_named_size_has_its_parameters_and_words():
    with torch.device("meta"):
        theirs = transformers.Sam3ViTModel(transformers.Sam3ViTConfig())
        ours = build_encoder("sam3", patch_size=14, img_size=1008, pretrain_img_size=336)
        named = build_encoder("sam3")
    # Ours has a bias of the patch embedding, and a class token's position, as its authors' files.
    expected = sum(p.numel() for p in theirs.parameters()) + 2 * 1024
    assert sum(p.numel() for p in ours.parameters()) == expected
    for block, layer in zip(ours.blocks, theirs.layers, strict=True):
        assert block.attn.partition.is_global == (layer.window_size == 0)
    assert ours.spec.window_size == theirs.config.window_size
    assert ours.blocks[0].attn.num_heads == theirs.config.num_attention_heads
    assert ours.blocks[0].norm1.eps == 1e-5
    assert named.pos_embed.shape == (1, 577, 1024)
    assert named.output_shape()["last_feat"].stride == 16


@pytest.mark.parametrize("whose", ["its authors", "transformers"])
def test_files_load_into_the_named_size(whose, tmp_path):
    """At 16 px, with all that the file has."""
    words = dict(hidden_size=128, intermediate_size=592, num_hidden_layers=2, patch_size=14)
    words |= dict(image_size=1008, pretrain_image_size=336, window_size=24)
    model = build(**words, global_attn_indexes=[1], layer_norm_eps=1e-5)
    if whose == "transformers":
        model.save_pretrained(tmp_path / "sam3")
    else:
        torch.save(own(model, f"detector.{TRUNK}") | around("detector."), tmp_path / "sam3")
    encoder = build_encoder("sam3", embed_dim=128, num_heads=2, depth=2, count=1)
    account = load_encoder(encoder, tmp_path / "sam3", show=str)
    assert not account.missing | account.unexpected | account.new
    moved = {"pos_embed"} if whose == "transformers" else set()
    assert account.resized.keys() == {"patch_embed.proj.weight"} | moved
    assert not any("differs" in note for note in account.notes)
    assert torch.equal(encoder.pos_embed[:, 1:], model.embeddings.position_embeddings)
    with torch.no_grad():
        assert encoder.eval()(torch.randn(1, 3, 64, 96))["last_feat"].shape == (1, 128, 4, 6)
