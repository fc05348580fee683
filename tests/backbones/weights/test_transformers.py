"""transformers' encoders against ours with their weights, saved as transformers saves them."""

import pytest
import torch
import transformers

from backbones import QuickGELU, TanhGELU, ViT, build_encoder
from backbones.weights import WeightsError, encoder_words, load_encoder, read

SIZES = dict(
    hidden_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8
)
VIT = SIZES | dict(intermediate_size=96, qkv_bias=True)
DINO = SIZES | dict(mlp_ratio=2)
MAE = dict(
    decoder_hidden_size=16,
    decoder_num_hidden_layers=1,
    decoder_num_attention_heads=2,
    decoder_intermediate_size=16,
    mask_ratio=0.0,
)
TAIL = {"norm behind the last block"}
CLS, MASK, HEAD = {"cls token"}, {"mask token"}, {"classifier's head"}
# Class: words of its config, and what is left out.
CLASSIFIERS = {
    "ViTModel": (VIT, TAIL | CLS | {"pooler"}),
    "ViTForImageClassification": (VIT, TAIL | CLS | HEAD),
    "ViTForMaskedImageModeling": (
        VIT | dict(encoder_stride=8),
        TAIL | CLS | MASK | {"decoder of masked patches"},
    ),
    "ViTMAEModel": (VIT | MAE, TAIL | CLS),
    "ViTMAEForPreTraining": (VIT | MAE, TAIL | CLS | {"decoder of masked patches"}),
    "DeiTForImageClassificationWithTeacher": (VIT, TAIL | CLS | HEAD | {"distillation token"}),
    "ViTMSNModel": (VIT, TAIL | CLS),
    "IJepaModel": (VIT, TAIL),
    "Dinov2Model": (DINO, TAIL | CLS | MASK),
    "Dinov2Backbone": (DINO, TAIL | CLS | MASK),
    "Dinov2ForImageClassification": (DINO, TAIL | CLS | MASK | HEAD),
    "Dinov2WithRegistersModel": (DINO, TAIL | CLS | MASK | {"register tokens"}),
    "Dinov2WithRegistersForImageClassification": (
        DINO,
        TAIL | CLS | MASK | HEAD | {"register tokens"},
    ),
}
LAYER_SCALE = {"LayerScale: multiplied into the linear map before it"}
RESIDUAL = dict(residual_block_indices=[1, 2], window_block_indices=[0, 2], window_size=3)
DETECTION = SIZES | RESIDUAL | dict(mlp_ratio=2, image_size=64, pretrain_image_size=32)
REL_POS = dict(use_relative_position_embeddings=True)
# The sizes of the map: native; not square and no multiple of the window.
IMAGES = [(64, 64), (80, 112)]


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def build(name: str, **words) -> torch.nn.Module:
    kind = getattr(transformers, name)
    return randomised(kind(kind.config_class(**words)))


def encoder_from(path, **words):
    """Our encoder of a file, what is not seen in it by `words`; and the account of its loading."""
    encoder = ViT(**encoder_words(read(path)) | words).eval()
    accounts = []
    load_encoder(encoder, path, show=accounts.append)
    return encoder, accounts[0]


def assert_close(ours: torch.Tensor, theirs: torch.Tensor):
    assert ours.shape == theirs.shape
    assert torch.isfinite(theirs).all()
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def assert_whole(account, encoder, dropped: set[str]):
    assert not account.missing
    assert not account.unexpected
    assert account.loaded.keys() | account.resized.keys() == encoder.state_dict().keys()
    assert {why for why, _ in account.dropped.values()} == dropped


def run(layers, x: torch.Tensor) -> torch.Tensor:
    for layer in layers:
        out = layer(x)
        x = out[0] if isinstance(out, tuple) else out
    return x


def patch_features(model: torch.nn.Module, image: torch.Tensor) -> torch.Tensor:
    """The patch tokens through the model's own blocks, without its other tokens: (B, C, H, W)."""
    body = getattr(model, model.base_model_prefix, model)
    height, width = (side // 8 for side in image.shape[2:])
    words = dict(interpolate_pos_encoding=True)
    if "Dinov2" in type(model).__name__:
        words = {}
    if "MAE" in type(model).__name__:  # it would shuffle the patches
        words["noise"] = torch.arange(height * width).expand(len(image), -1)
    tokens = body.embeddings(image, **words)
    if isinstance(tokens, tuple):
        tokens = tokens[0]
    layers = body.layers if hasattr(body, "layers") else body.encoder.layer
    patches = run(layers, tokens[:, -height * width :])
    return patches.transpose(1, 2).unflatten(2, (height, width))


@pytest.mark.parametrize("saved", ["folder", "state dict"])
@pytest.mark.parametrize("name", [*CLASSIFIERS, "Dinov2Model, SwiGLU"])
def test_classifier(name, saved, tmp_path):
    name, *swiglu = name.split(", ")
    words, dropped = CLASSIFIERS[name]
    model = build(name, **words | dict.fromkeys(["use_swiglu_ffn"] * len(swiglu), True))
    if saved == "folder":
        path = tmp_path
        model.save_pretrained(path)
    else:
        path = tmp_path / "model.pth"
        torch.save(model.state_dict(), path)
    encoder, account = encoder_from(path, num_heads=4)

    dino = "Dinov2" in name
    assert_whole(account, encoder, dropped | (LAYER_SCALE if dino else set()))
    assert read(path).format == ("hf-dinov2" if dino else "hf-vit")
    # transformers 5.23 resizes positions for registers with antialiasing, which ViTDet does not.
    for size in [(32, 32)] + [(48, 24)] * ("Registers" not in name):
        image = torch.randn(2, 3, *size)
        with torch.no_grad():
            assert_close(encoder(image)["last_feat"], patch_features(model, image))


def test_settings_are_those_of_transformers(tmp_path):
    for name, words in (
        ("ViTModel", VIT),
        ("ViTMAEModel", VIT | MAE),
        ("Dinov2Model", DINO),
        ("VitDetModel", DETECTION),
    ):
        model = build(name, **words)
        torch.save(model.state_dict(), tmp_path / name)
        encoder, account = encoder_from(tmp_path / name, num_heads=4)
        assert encoder.blocks[0].norm1.eps == model.config.layer_norm_eps, name
        assert model.config.hidden_act == "gelu"
        assert isinstance(encoder.blocks[0].mlp.act, torch.nn.GELU)
    other = ViT(
        **encoder_words(read(tmp_path / "ViTModel"))
        | dict(act_layer=QuickGELU, norm_layer=torch.nn.LayerNorm)
    )
    account = load_encoder(other, tmp_path / "ViTModel", show=lambda _: None)
    assert account.notes == [
        "differs: norm_eps is 1e-05 here, 1e-12 in models of this format",
        "differs: act_layer is QuickGELU here, GELU in models of this format",
        "not in the file: num_heads, 1 here",
    ]


@pytest.mark.parametrize("bias", [False, True])
def test_classifier_without_qkv_bias(bias, tmp_path):
    model = build("ViTModel", **VIT | dict(qkv_bias=bias))
    model.save_pretrained(tmp_path)
    encoder, _ = encoder_from(tmp_path, num_heads=4)
    assert (encoder.blocks[0].attn.qkv.bias is not None) == bias
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert_close(encoder(image)["last_feat"], patch_features(model, image))


def test_the_config_of_a_folder_says_what_weights_do_not(tmp_path):
    vit = build("ViTModel", **VIT | dict(layer_norm_eps=1e-3, hidden_act="relu"))
    vitdet = build("VitDetModel", **DETECTION)  # without relative positions
    vit.save_pretrained(tmp_path / "vit")
    vitdet.save_pretrained(tmp_path / "vitdet")
    encoder, account = encoder_from(tmp_path / "vit")
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert_close(encoder(image)["last_feat"], patch_features(vit, image))
    assert not account.notes
    encoder, account = encoder_from(tmp_path / "vitdet")
    image = torch.randn(1, 3, 80, 112)
    with torch.no_grad():
        assert_close(encoder(image)["last_feat"], vitdet(image).last_hidden_state)
    config = tmp_path / "vit" / "config.json"
    for text, told in (
        ("{", "cannot read .*config.json"),
        ("[]", "it is no JSON object"),
        ('{"hidden_act": "gelu_new"}', "config.json has hidden_act='gelu_new'"),
        ('{"num_attention_heads": "4"}', "config.json has num_attention_heads='4'"),
        ('{"window_block_indices": 2}', "config.json has window_block_indices=2"),
    ):
        config.write_text(text)
        with pytest.raises(WeightsError, match=told):
            read(tmp_path / "vit")


def test_classifier_for_detection(tmp_path):
    """What detection adds is new, positions are resized, and the account says so."""
    build("ViTModel", **VIT).save_pretrained(tmp_path)
    words = encoder_words(read(tmp_path)) | dict(
        num_heads=4, img_size=128, pretrain_img_size=64, use_rel_pos=True, propagation="conv"
    )
    del words["window_block_indexes"], words["residual_block_indexes"]
    encoder = ViT(**words)
    account = load_encoder(encoder, tmp_path, show=lambda _: None)
    assert all("rel_pos" in key or "residual" in key for key in account.new)
    assert {key.split(".")[0] for key in account.new} == {"blocks"}
    assert account.resized.keys() == {"pos_embed"}


def test_half_precision_layer_scale_keeps_its_digits(tmp_path):
    model = build("Dinov2Model", **DINO)
    for layer in model.encoder.layer:
        layer.layer_scale1.lambda1.data.fill_(1e-5)
    torch.save(model.half().state_dict(), tmp_path / "half.pth")
    encoder, _ = encoder_from(tmp_path / "half.pth", num_heads=4)
    layer = model.float().encoder.layer[0]
    exact = layer.attention.o_proj.weight * layer.layer_scale1.lambda1[:, None]
    torch.testing.assert_close(encoder.blocks[0].attn.proj.weight, exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", IMAGES)
@pytest.mark.parametrize("rel_pos", [False, True])
def test_vitdet(rel_pos, size, tmp_path):
    model = build("VitDetModel", **DETECTION | dict(use_relative_position_embeddings=rel_pos))
    model.save_pretrained(tmp_path)
    # Windows and heads are seen from relative positions only.
    unseen = {} if rel_pos else dict(num_heads=4, window_size=3, window_block_indexes=[0, 2])
    encoder, account = encoder_from(tmp_path, **unseen)
    assert encoder.plan == ("window", "global + residual", "window + residual")
    assert_whole(account, encoder, set())
    assert not account.resized
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        assert_close(encoder(image)["last_feat"], model(image).last_hidden_state)


@pytest.mark.parametrize("without", ["positions", "qkv bias"])
def test_vitdet_without_what_is_optional(without, tmp_path):
    model = build("VitDetModel", **DETECTION | REL_POS | dict(qkv_bias=without != "qkv bias"))
    if without == "positions":  # transformers 5.23 cannot build it without them
        model.embeddings.position_embeddings = None
    model.save_pretrained(tmp_path)
    encoder, account = encoder_from(tmp_path)
    assert_whole(account, encoder, set())
    image = torch.randn(1, 3, 80, 112)
    with torch.no_grad():
        assert_close(encoder(image)["last_feat"], model(image).last_hidden_state)


@pytest.mark.parametrize("prefix", ["", "vitdet.", "backbone."])
def test_vitdet_backbone(prefix, tmp_path):
    model = build("VitDetBackbone", **DETECTION | REL_POS)
    path = tmp_path / "model.pth"
    torch.save({f"{prefix}{k}": v for k, v in model.state_dict().items()}, path)
    encoder, account = encoder_from(path)
    assert_whole(account, encoder, set())
    image = torch.randn(1, 3, 80, 112)
    with torch.no_grad():
        assert_close(encoder(image)["last_feat"], model(image).feature_maps[-1])


def test_vitdet_in_vitmatte(tmp_path):
    backbone = transformers.VitDetConfig(**DETECTION | REL_POS | dict(num_channels=4))
    sizes = dict(convstream_hidden_sizes=[8, 8, 8], fusion_hidden_sizes=[8, 8, 8, 8])
    model = build("VitMatteForImageMatting", backbone_config=backbone, hidden_size=48, **sizes)
    model.save_pretrained(tmp_path)
    encoder, account = encoder_from(tmp_path)
    assert_whole(account, encoder, {"VitMatte's decoder"})
    image = torch.randn(1, 4, 80, 112)
    with torch.no_grad():
        assert_close(encoder(image)["last_feat"], model.backbone(image).feature_maps[-1])


def refusal(model, change, tmp_path, encoder=None) -> str:
    """The message on loading a model's tensors after `change`; the encoder is as it was."""
    path = tmp_path / "model.pth"
    torch.save(model.state_dict(), path)
    encoder = encoder or ViT(**encoder_words(read(path)) | dict(num_heads=4))
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    state = dict(model.state_dict())
    change(state)
    torch.save(state, path)
    with pytest.raises(WeightsError) as caught:
        load_encoder(encoder, path)
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert "\n" not in str(caught.value)
    return str(caught.value)


VITDET_KEYS = {
    "embeddings.position_embeddings": "absolute positions: pos_embed",
    "embeddings.projection.bias": "patch embedding: patch_embed.proj.bias",
    "encoder.layer.0.attention.rel_pos_w": "relative positions: blocks.0.attn.rel_pos_w",
    "encoder.layer.2.residual.norm3.weight": "residual modules: blocks.2.residual.norm3.weight",
    "encoder.layer.0.mlp.fc1.weight": "MLPs: blocks.0.mlp.fc1.weight",
    "encoder.layer.1.mlp.fc2.bias": "MLPs: blocks.1.mlp.fc2.bias",
    "encoder.layer.2.norm2.bias": "norms: blocks.2.norm2.bias",
}


@pytest.mark.parametrize("key", VITDET_KEYS)
def test_vitdet_without_a_tensor_is_refused(key, tmp_path):
    model = build("VitDetModel", **DETECTION | REL_POS)

    def remove(state):
        del state[key]

    def rename(state):
        state[f"{key}s"] = state.pop(key)

    assert f"no {VITDET_KEYS[key]}" in refusal(model, remove, tmp_path)
    assert f"no {VITDET_KEYS[key]}; unused" in refusal(model, rename, tmp_path)


def test_vitdet_without_relative_positions_does_not_leave_them_random(tmp_path):
    encoder = build_encoder(
        "vit-b", embed_dim=48, depth=3, num_heads=4, patch_size=8, img_size=64, use_rel_pos=True
    )
    model = build("VitDetModel", **DETECTION | dict(residual_block_indices=[]))
    assert "no relative positions: blocks.0.attn.rel_pos_h" in refusal(
        model, lambda state: None, tmp_path, encoder
    )


def test_vit_without_a_tensor_is_refused(tmp_path):
    model = build("ViTForImageClassification", **VIT)

    def without(ending):
        def change(state):
            for key in [k for k in state if k.endswith(ending)]:
                del state[key]

        return change

    told = refusal(model, without("layers.1.layernorm_before.weight"), tmp_path)
    assert "no norms: blocks.1.norm1.weight" in told
    told = refusal(model, without("layers.2.attention.k_proj.weight"), tmp_path)
    assert "has blocks.2.attn.q.weight but no k" in told


def test_dinov2_that_is_no_plain_vit_is_refused(tmp_path):
    model = build("Dinov2Model", **DINO)

    def alone(state):
        del state["encoder.layer.1.mlp.fc2.weight"]

    def unscaled(state):
        del state["encoder.layer.2.layer_scale1.lambda1"]

    def other_channels(state):
        state["encoder.layer.0.layer_scale1.lambda1"] = torch.ones(47)

    def integers(state):
        key = "encoder.layer.0.layer_scale1.lambda1"
        state[key] = state[key].int()

    assert "has blocks.1.ls2.gamma but no blocks.1.mlp.fc2.weight" in refusal(
        model, alone, tmp_path
    )
    told = refusal(model, unscaled, tmp_path)
    assert "has blocks.0.ls1.gamma but no blocks.2.ls1.gamma" in told
    assert "blocks.0.ls1.gamma (47,) for blocks.0.attn.proj.weight (48, 48)" in refusal(
        model, other_channels, tmp_path
    )
    assert "blocks.0.ls1.gamma is torch.int32" in refusal(model, integers, tmp_path)


PLANS = {
    "a window of half the map": dict(window_size=4, image_size=64, window_block_indices=[0, 2]),
    "a window as large as the map": dict(window_size=8, image_size=64, window_block_indices=[0, 1]),
    "a window larger than the map": dict(window_size=14, image_size=64, window_block_indices=[1]),
    "windows everywhere": dict(window_size=4, image_size=64, window_block_indices=[0, 1, 2, 3]),
    "no windows: the default": {},
}


@pytest.mark.parametrize("rel_pos", [False, True])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", ["", "model.safetensors"])
def test_the_plan_is_the_configs(plan, rel_pos, name, tmp_path):
    """Of a folder, or of the file in it, whatever the tables of relative positions look like."""
    small = dict(hidden_size=48, num_hidden_layers=4, num_attention_heads=4, patch_size=8)
    words = dict(image_size=64, pretrain_image_size=32) | PLANS[plan]
    model = build("VitDetModel", **small, **words, use_relative_position_embeddings=rel_pos)
    model.save_pretrained(tmp_path)
    encoder, account = encoder_from(tmp_path / name)
    assert not account.notes
    image = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        assert_close(encoder(image)["last_feat"], model(image).last_hidden_state)


def test_a_grid_that_is_no_square_is_the_configs(tmp_path):
    """4 x 16 positions are as many as 8 x 8."""
    model = build("ViTModel", **VIT | dict(image_size=[32, 128], patch_size=8))
    model.save_pretrained(tmp_path)
    contents = read(tmp_path)
    assert contents.grid == (4, 16)
    account = load_encoder(ViT(**encoder_words(contents)), tmp_path, show=lambda _: None)
    assert account.resized["pos_embed"][0] == "4x16 -> 8x8, bicubic"


SIGLIP = SIZES | dict(intermediate_size=96)
SIGLIP_TEXT = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                   vocab_size=32, bos_token_id=0, eos_token_id=1)  # fmt: skip
SIGLIPS = {
    "SiglipVisionModel": TAIL | {"attention pooling"},
    "SiglipModel": TAIL | {"attention pooling", "text tower", "scale of the contrastive loss"},
    "SiglipForImageClassification": TAIL | HEAD | {"attention pooling"},
}


def siglip(name: str, **vision) -> torch.nn.Module:
    kind = getattr(transformers, name)
    if name == "SiglipVisionModel":
        return randomised(kind(transformers.SiglipVisionConfig(**SIGLIP | vision)))
    words = dict(vision_config=SIGLIP | vision, text_config=SIGLIP_TEXT)
    return randomised(kind(transformers.SiglipConfig(**words)))


@pytest.mark.parametrize("saved", ["folder", "state dict"])
@pytest.mark.parametrize("name", SIGLIPS)
def test_siglip(name, saved, tmp_path):
    """Its GELU is a tanh, which no tensor shows: 1e-6 of the features, not 1e-4."""
    model = siglip(name)
    path = tmp_path if saved == "folder" else tmp_path / "siglip.pth"
    if saved == "folder":
        model.save_pretrained(path)
    else:
        torch.save(model.state_dict(), path)
    encoder, account = encoder_from(path, num_heads=4)
    assert read(path).format == "hf-siglip"
    assert_whole(account, encoder, SIGLIPS[name])
    assert not any("differs" in note for note in account.notes)
    assert isinstance(encoder.blocks[0].mlp.act, TanhGELU)
    tower = getattr(model, "vision_model", model)
    assert encoder.blocks[0].norm1.eps == tower.config.layer_norm_eps
    for height, width in [(32, 32), (48, 24)]:
        image = torch.randn(2, 3, height, width)
        with torch.no_grad():
            patches = tower.embeddings(image, interpolate_pos_encoding=True)
            for layer in tower.encoder.layers:
                patches = layer(patches, attention_mask=None)
                patches = patches[0] if isinstance(patches, tuple) else patches
            expected = patches.transpose(1, 2).unflatten(2, (height // 8, width // 8))
            found = encoder(image)["last_feat"]
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 5e-6 * expected.abs().max()


def test_siglip_of_another_activation(tmp_path):
    siglip("SiglipVisionModel", hidden_act="gelu").save_pretrained(tmp_path)
    assert encoder_words(read(tmp_path))["act_layer"] is torch.nn.GELU


def test_siglip_without_a_tensor_is_refused(tmp_path):
    for key, told in {
        "vision_model.embeddings.position_embedding.weight": "no absolute positions: pos_embed",
        "vision_model.encoder.layers.2.layer_norm2.bias": "no norms: blocks.2.norm2.bias",
        "vision_model.encoder.layers.1.self_attn.k_proj.bias": "but no k_proj",
    }.items():
        model = siglip("SiglipModel")
        assert told in refusal(model, lambda state, key=key: state.pop(key), tmp_path)


SAM = dict(hidden_size=48, num_hidden_layers=4, num_attention_heads=4, image_size=128, patch_size=8,
           mlp_dim=96, output_channels=16, window_size=5, global_attn_indexes=[1, 3])  # fmt: skip
SAMS = {
    "SamVisionModel": set(),
    "SamModel": {"SAM's prompt encoder", "SAM's mask decoder", "positions of SAM's prompts"},
}


@pytest.mark.parametrize("rel_pos", [True, False])
@pytest.mark.parametrize("saved", ["folder", "state dict"])
@pytest.mark.parametrize("name", SAMS)
def test_sam(name, saved, rel_pos, tmp_path):
    vision = transformers.SamVisionConfig(**SAM, use_rel_pos=rel_pos)
    if name == "SamModel":
        parts = dict(prompt_encoder_config=dict(hidden_size=16, image_size=128, patch_size=8))
        parts["mask_decoder_config"] = dict(
            hidden_size=16, mlp_dim=16, num_attention_heads=2, iou_head_hidden_dim=16
        )
        config = transformers.SamConfig(vision_config=vision.to_dict(), **parts)
    else:
        config = vision
    model = randomised(getattr(transformers, name)(config))
    path = tmp_path if saved == "folder" else tmp_path / "sam.pth"
    if saved == "folder":
        model.save_pretrained(path)
    else:
        torch.save(model.state_dict(), path)
    # Windows and heads are seen from a config or from relative positions.
    shown = rel_pos or saved == "folder"
    unseen = {} if shown else dict(num_heads=4, window_size=5, window_block_indexes=[0, 2])
    encoder, account = encoder_from(path, **unseen)
    assert read(path).format == "hf-sam"
    assert_whole(account, encoder, SAMS[name])
    assert encoder.plan == ("window", "global", "window", "global")
    image = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        expected = model.vision_encoder(image).last_hidden_state
        assert_close(encoder(image)["last_feat"], expected)


def test_sams_config_that_vit_cannot_say(tmp_path):
    model = transformers.SamVisionModel(transformers.SamVisionConfig(**SAM))
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"global_attn_indexes": "all"}')
    with pytest.raises(WeightsError, match=r"config.json has global_attn_indexes='all'"):
        read(tmp_path)
