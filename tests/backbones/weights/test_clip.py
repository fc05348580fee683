"""CLIP's image towers, OpenCLIP's and transformers', against ours with their weights."""

import open_clip
import pytest
import torch
import transformers
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from safetensors.torch import save_file
from torch import nn

from backbones import QuickGELU
from backbones.weights import WeightsError, encoder_words, read

from .test_transformers import assert_close, assert_whole, encoder_from, randomised, refusal, run

TOWER = dict(layers=3, width=48, head_width=12, patch_size=8, image_size=32, mlp_ratio=2.0)
TEXT = dict(context_length=8, vocab_size=32, width=16, heads=2, layers=2)
DROPPED = {
    "cls token",
    "norm behind the last block",
    "projection to the space shared with text",
}
AROUND = {"text tower", "scale of the contrastive loss"}
LAYER_SCALE = {"LayerScale: multiplied into the linear map before it"}
QUICK = dict(act_layer=QuickGELU)


def open_clip_model(kind=open_clip.CLIP, quick_gelu=False, **tower) -> nn.Module:
    vision, text = CLIPVisionCfg(**TOWER | tower), CLIPTextCfg(**TEXT)
    return randomised(kind(24, vision, text, quick_gelu=quick_gelu, init_logit_bias=-10.0))


def open_clip_features(visual: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """The patch tokens through the tower's own blocks, without the cls token: (B, C, H, W)."""
    tokens = visual._embeds(image)[:, 1:]
    return run(visual.transformer.resblocks, tokens).transpose(1, 2).unflatten(2, (4, 4))


@pytest.mark.parametrize("part", ["model", "tower"])
@pytest.mark.parametrize(
    ("model", "more"),
    [
        (dict(), set()),
        (dict(quick_gelu=True), set()),
        (dict(kind=CustomTextCLIP), set()),
        (dict(ls_init_value=0.1), LAYER_SCALE),
        (dict(no_ln_pre=True), set()),
        (dict(patch_dropout=0.5), set()),  # FLIP's training
        (dict(attentional_pool=True, attn_pooler_heads=2), {"attention pooling"}),
        (dict(attentional_pool="parallel", attn_pooler_heads=2), {"attention pooling"}),
    ],
)
def test_open_clip(model, more, part, tmp_path):
    clip = open_clip_model(**model)
    path = tmp_path / "open_clip_model.safetensors"
    save_file((clip if part == "model" else clip.visual).state_dict(), path)
    # What a file does not show.
    unseen = dict(num_heads=4) | (QUICK if model.get("quick_gelu") else {})
    encoder, account = encoder_from(path, **unseen)

    assert_whole(account, encoder, DROPPED | more | (AROUND if part == "model" else set()))
    act = "QuickGELU" if model.get("quick_gelu") else "GELU"
    assert account.notes == [
        "the bias of the patch embedding is zero: the file has none",
        f"not in the file: act_layer, {act} here",
        "not in the file: num_heads, 4 here",
    ]
    assert read(path).format == "openclip"
    assert encoder.blocks[0].norm1.eps == clip.visual.transformer.resblocks[0].ln_1.eps
    assert hasattr(encoder, "norm_pre") == ("no_ln_pre" not in model)
    assert not encoder.patch_embed.proj.bias.any()
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert_close(encoder(image)["last_feat"], open_clip_features(clip.visual, image))


def test_the_text_tower_has_keys_of_a_bare_image_tower(tmp_path):
    """Even of the same shapes they are told apart."""
    clip = open_clip_model()
    state = clip.state_dict()
    clash = [k for k in clip.visual.state_dict() if k in state]
    assert "positional_embedding" in clash
    assert "transformer.resblocks.0.attn.in_proj_weight" in clash
    state |= {key: torch.randn_like(state[f"visual.{key}"]) for key in clash}
    # As OpenCLIP's training saves it.
    state = {f"module.{key}": tensor for key, tensor in state.items()}
    torch.save({"epoch": 1, "name": "run", "state_dict": state}, tmp_path / "epoch_1.pt")
    encoder, account = encoder_from(tmp_path / "epoch_1.pt", num_heads=4)
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert_close(encoder(image)["last_feat"], open_clip_features(clip.visual, image))
    assert {account.dropped[key][0] for key in clash} == {"text tower"}
    for key in ("logit_scale", "logit_bias"):
        assert account.dropped[key] == ("scale of the contrastive loss", 1)


def test_openai_clip(tmp_path):
    """Half precision, and the numbers that OpenAI's archives hold beside the weights."""
    clip = open_clip_model(quick_gelu=True).half()
    state = clip.state_dict()
    for name, value in (("input_resolution", 32), ("context_length", 8), ("vocab_size", 32)):
        state[name] = torch.tensor(value)
    torch.save(state, tmp_path / "clip.pt")
    encoder, account = encoder_from(tmp_path / "clip.pt", num_heads=4, **QUICK)
    assert_whole(account, encoder, DROPPED | AROUND | {"size of the model"})
    assert sum("size of the model" in entry for entry in account.dropped.values()) == 3
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert_close(encoder(image)["last_feat"], open_clip_features(clip.float().visual, image))


def test_what_changes_the_attention_is_refused(tmp_path):
    clip = open_clip_model(qk_norm=True)
    told = refusal(open_clip_model(), lambda state: state.update(clip.state_dict()), tmp_path)
    assert "unused attention: blocks.0.attn.ln_q.weight" in told


def test_a_tower_without_a_tensor_is_refused(tmp_path):
    for key, told in {
        "visual.positional_embedding": "no absolute positions: pos_embed",
        "visual.conv1.weight": "no patch embedding: patch_embed.proj.weight",
        "visual.ln_pre.bias": "no norm before the blocks: norm_pre.bias",
        "visual.transformer.resblocks.1.attn.in_proj_bias": "no attention: blocks.1.attn.qkv.bias",
    }.items():
        clip = open_clip_model()
        assert told in refusal(clip, lambda state, key=key: state.pop(key), tmp_path)


def test_towers_that_are_no_plain_vit(tmp_path):
    timm = open_clip_model(
        CustomTextCLIP,
        timm_model_name="vit_tiny_patch16_224",
        timm_pool="avg",
        timm_proj="linear",
        image_size=224,
    )
    torch.save(timm.state_dict(), tmp_path / "timm.pth")
    with pytest.raises(WeightsError, match=r"model\.visual\.trunk\.state_dict\(\)"):
        read(tmp_path / "timm.pth")
    torch.save(timm.visual.trunk.state_dict(), tmp_path / "trunk.pth")
    assert read(tmp_path / "trunk.pth").format == "timm"

    resnet = open_clip_model(layers=(1, 1, 1, 1), width=8, head_width=8)
    torch.save(resnet.state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(WeightsError, match="its image tower is a ResNet"):
        read(tmp_path / "resnet.pth")


HF_TOWER = dict(
    hidden_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=96,
    image_size=32,
    patch_size=8,
)
HF_TEXT = dict(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    vocab_size=32,
    bos_token_id=0,
    eos_token_id=1,
)
HF_DROPPED = {"cls token", "norm behind the last block"}
HF_MODELS = {
    "CLIPVisionModel": HF_DROPPED,
    "CLIPVisionModelWithProjection": DROPPED,
    "CLIPModel": DROPPED | AROUND,
    "CLIPForImageClassification": HF_DROPPED | {"classifier's head"},
}


def hf_clip(name: str, **tower) -> nn.Module:
    if "Vision" in name:
        config = transformers.CLIPVisionConfig(**HF_TOWER | tower)
    else:
        config = transformers.CLIPConfig(vision_config=HF_TOWER | tower, text_config=HF_TEXT)
    return randomised(getattr(transformers, name)(config))


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("name", HF_MODELS)
def test_hf_clip(name, act, tmp_path):
    model = hf_clip(name, hidden_act=act)
    model.save_pretrained(tmp_path)
    # QuickGELU is transformers' default.
    encoder, account = encoder_from(tmp_path)

    assert_whole(account, encoder, HF_MODELS[name])
    assert read(tmp_path).format == "hf-clip"
    assert isinstance(encoder.blocks[0].mlp.act, nn.GELU if act == "gelu" else QuickGELU)
    assert encoder.blocks[0].norm1.eps == 1e-5
    for height, width in [(32, 32), (48, 24)]:
        image = torch.randn(2, 3, height, width)
        with torch.no_grad():
            tower = getattr(model, "vision_model", model)
            tokens = tower.embeddings(image, interpolate_pos_encoding=True)
            patches = tower.pre_layrnorm(tokens)[:, 1:]
            for layer in tower.encoder.layers:
                patches = layer(patches, attention_mask=None)
                patches = patches[0] if isinstance(patches, tuple) else patches
            patches = patches.transpose(1, 2).unflatten(2, (height // 8, width // 8))
            assert_close(encoder(image)["last_feat"], patches)


def test_hf_clip_of_older_transformers(tmp_path):
    """The image tower alone had a prefix, and a table of indexes."""
    model = hf_clip("CLIPVisionModel")
    state = {f"vision_model.{k}": v for k, v in model.state_dict().items()}
    state["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    torch.save(state, tmp_path / "model.pth")
    encoder, account = encoder_from(tmp_path / "model.pth", num_heads=4)
    assert_whole(account, encoder, HF_DROPPED | {"indexes of positions"})
    torch.save(model.state_dict(), tmp_path / "new.pth")
    other, _ = encoder_from(tmp_path / "new.pth", num_heads=4)
    for key, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[key]), key


def test_hf_clip_without_a_tensor_is_refused(tmp_path):
    told = refusal(
        hf_clip("CLIPModel"),
        lambda state: state.pop("vision_model.encoder.layers.2.self_attn.v_proj.bias"),
        tmp_path,
    )
    assert "has blocks.2.attn.k_proj.bias but no v_proj" in told


def test_words_of_a_tower(tmp_path):
    save_file(open_clip_model().state_dict(), tmp_path / "clip.safetensors")
    words = encoder_words(read(tmp_path / "clip.safetensors"))
    assert words["pre_norm"]
    assert words["pretrain_img_size"] == 32
    assert words["pretrain_use_cls_token"]
    assert "act_layer" not in words
