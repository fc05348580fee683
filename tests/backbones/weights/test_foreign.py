"""Files of models that compute another function: refused, and by name, whatever their keys fit.

Those of installed libraries are written by them, with random weights; the others are a tensor of
each kind of key that their repositories' modules have.
"""

import json

import pytest
import timm
import torch
import torchvision
import transformers

from backbones import build_encoder
from backbones.weights import FORMATS, WeightsError, load_encoder, read
from backbones.weights.foreign import MODELS, refuse_foreign

from .test_timm import build as build_timm

SIZES = dict(
    hidden_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
)
State = dict[str, torch.Tensor]


def hf(name: str, **words) -> State:
    kind = getattr(transformers, name)
    with torch.device("meta"):
        return kind(kind.config_class(**words)).state_dict()


def of_timm(name: str, **words) -> State:
    with torch.device("meta"):
        return timm.create_model(name, **words).state_dict()


def keys(text: str) -> State:
    """A tensor for each name; "k[3,4]" says its shape."""
    found = {}
    for word in text.split():
        key, _, shape = word.partition("[")
        found[key] = torch.ones([int(n) for n in shape.rstrip("]").split(",")] if shape else 1)
    return found


def with_prefix(prefix: str, state: State) -> State:
    return {f"{prefix}{k}": v for k, v in state.items()}


def swin_blocks(front: str, text: str) -> State:
    return with_prefix(f"{front}.0.blocks.0.", keys(text))


VIDEOS, HF_VIDEOS = (
    f"a model of videos ({k})" for k in ("VideoMAE, V-JEPA, ...", "of transformers")
)
BEIT, HF_BEIT = "BEiT or Data2Vec", "BEiT or Data2Vec of transformers"
SIGLIP = "SigLIP 2 with patches of any number (NaFlex)"
VIT = dict(**SIZES, intermediate_size=96)
VITPOSE = SIZES | dict(image_size=[32, 32], patch_size=[8, 8])
CASES = {
    "PE-Det": (
        "a detector on Perception Encoder that is none of PE-Det's Mask R-CNNs",
        lambda: (
            with_prefix(
                "backbone.net.",
                keys("conv1.weight positional_embedding ln_pre.weight rope.freqs_cos")
                | with_prefix(
                    "transformer.resblocks.0.",
                    keys("attn.in_proj_weight ln_1.weight mlp.c_fc.weight ls_1.gamma"),
                ),
            )
            | keys("backbone.simfp_2.0.weight proposal_generator.rpn_head.conv.conv0.weight")
        ),
    ),
    "MIMDet": (
        "MIMDet",
        lambda: (
            with_prefix(
                "backbone.bottom_up.",
                keys(
                    "encoder.patch_embed.proj.0.0.weight encoder.pos_embed[1,5,48] "
                    "encoder.blocks.0.attn.qkv.weight decoder.decoder_norm.bias "
                    "decoder.decoder_blocks.0.attn.qkv.weight"
                ),
            )
            | keys("backbone.fpn_lateral2.weight proposal_generator.rpn_head.conv.weight")
        ),
    ),
    "Co-DETR": (
        "Co-DETR (or another DETR of mmdetection)",
        lambda: keys(
            "backbone.blocks.0.attn.q_proj.weight backbone.rope_glb.freqs_cos neck.p4.0.weight "
            "query_head.transformer.level_embeds rpn_head.rpn_conv.weight"
        ),
    ),
    "SAM 2": (
        "SAM 2",
        lambda: (
            keys(
                "image_encoder.trunk.blocks.0.attn.qkv.weight image_encoder.trunk.pos_embed_window "
                "memory_attention.layers.0.norm1.weight"
            )
            | {"memory_attention.freqs": torch.ones(4, 6, dtype=torch.complex64)}
        ),
    ),
    "SAM 2 of timm": ("Hiera", lambda: of_timm("sam2_hiera_tiny")),
    "MobileSAM": ("MobileSAM", lambda: keys("image_encoder.layers.1.blocks.0.attn.qkv.weight")),
    "C-RADIO": (
        "C-RADIO (or another RADIO)",
        lambda: with_prefix(
            "radio_model.",
            keys(
                "input_conditioner.norm_mean model.patch_generator.embedder.weight summary_idxs "
                "model.patch_generator.pos_embed model.blocks.0.attn.qkv.weight model.norm.weight"
            ),
        ),
    ),
    "C-RADIO of transformers": (
        "C-RADIO (or another RADIO)",
        lambda: hf("RadioModel", **SIZES, max_img_size=64),
    ),
    "EVA-02-CLIP": ("EVA-02-CLIP", lambda: of_timm("eva02_base_patch16_clip_224", depth=1)),
    "BEiT": (BEIT, lambda: of_timm("beit_base_patch16_224", depth=1)),
    "BEiT of transformers": (HF_BEIT, lambda: hf("BeitModel", **VIT)),
    "Data2Vec of transformers": (HF_BEIT, lambda: hf("Data2VecVisionModel", **VIT)),
    "YOLOS": ("YOLOS", lambda: hf("YolosModel", **VIT | dict(image_size=[32, 32]))),
    "ViTPose": (
        "ViTPose",
        lambda: (
            with_prefix("backbone.", of_timm("vit_tiny_patch16_224", depth=1))
            | keys("keypoint_head.final_layer.weight")
        ),
    ),
    "ViTPose++": (
        "ViTPose++",
        lambda: hf("VitPoseBackbone", **VITPOSE, num_experts=2, part_features=12),
    ),
    "MLCD": ("MLCD", lambda: hf("MLCDVisionModel", **VIT)),
    "SigLIP 2 NaFlex": (
        SIGLIP,
        lambda: hf("Siglip2VisionModel", **{k: v for k, v in VIT.items() if k != "image_size"}),
    ),
    "NaFlexViT": ("NaFlexViT", lambda: of_timm("naflexvit_base_patch16_gap", depth=1)),
    "AIMv2 of transformers": ("AIMv2 of transformers", lambda: hf("Aimv2VisionModel", **VIT)),
    "LW-DETR": ("LW-DETR", lambda: hf("LwDetrViTBackbone", **SIZES, num_windows=4)),
    "Hiera": ("Hiera", lambda: of_timm("hiera_tiny_224")),
    "MViTv2 of timm": ("timm's MViTv2", lambda: of_timm("mvitv2_tiny")),
    "Swin V2 of timm": ("Swin V2", lambda: of_timm("swinv2_tiny_window8_256")),
    "Swin V2 of torchvision": ("Swin V2", lambda: torchvision.models.swin_v2_t().state_dict()),
    "Swin V2 of transformers": (
        "Swin V2",
        lambda: hf("Swinv2Model", image_size=32, embed_dim=16, depths=[1, 1], num_heads=[1, 2]),
    ),
    "Swin of torchvision": (
        "Swin of torchvision",
        lambda: torchvision.models.swin_t().state_dict(),
    ),
    "Swin of transformers": (
        "Swin of transformers",
        lambda: hf("SwinModel", image_size=32, embed_dim=16, depths=[1, 1], num_heads=[1, 2]),
    ),
    "Swin of mmdetection": (
        "Swin of mmdetection",
        lambda: (
            swin_blocks("backbone.stages", "attn.w_msa.qkv.weight norm1.weight")
            | keys("neck.lateral_convs.0.conv.weight bbox_head.fc_cls.weight")
        ),
    ),
    "parallel branches": (
        "a ViT with parallel branches",
        lambda: of_timm("vit_small_patch16_18x2_224", depth=1),
    ),
    "V-JEPA": (
        VIDEOS,
        lambda: with_prefix(
            "backbone.",
            keys("patch_embed.proj.weight[8,3,2,4,4] blocks.0.attn.qkv.weight pos_embed[1,8,8]"),
        ),
    ),
    "VideoMAE of transformers": (HF_VIDEOS, lambda: hf("VideoMAEModel", **VIT)),
}


def test_each_model_has_a_file_here():
    assert {name for name, _ in CASES.values()} == {model.name for model in MODELS}


@pytest.mark.parametrize("case", CASES)
def test_its_files_are_refused_by_name(case):
    name, state = CASES[case]
    with pytest.raises(WeightsError) as error:
        refuse_foreign(state())
    assert str(error.value).startswith(f"it is of {name}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("case", ["SAM 2", "PE-Det", "V-JEPA"])
def test_reading_and_loading_say_so(case, tmp_path):
    """Complex buffers, wrappers and containers do not come before the name."""
    name, state = CASES[case]
    path = tmp_path / "model.pth"
    container = "target_encoder" if case == "V-JEPA" else "module"
    torch.save({container: with_prefix("module.", state()), "epoch": 3}, path)
    encoder = build_encoder("vit-ti", depth=2)
    for use in (read, lambda path: load_encoder(encoder, path, strict=False)):
        with pytest.raises(WeightsError) as error:
            use(path)
        assert str(error.value).startswith(f"cannot read {path}: it is of {name}: ")


def test_complex_numbers_of_another_model_are_refused(tmp_path):
    torch.save({"w": torch.ones(2), "freqs": torch.ones(2, dtype=torch.complex64)}, tmp_path / "w")
    with pytest.raises(
        WeightsError, match=r"freqs is complex64, not dense floating-point or whole"
    ):
        read(tmp_path / "w")


# ---- The same tensors, another function: only a config.json can tell -----------------------------


def saved_by_timm(model, name: str, folder, **config) -> None:
    folder.mkdir()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(dict(architecture=name, **config)))


def test_rotary_positions_beside_absolute_ones(tmp_path):
    """timm's vit_*_rope_ape_* have the tensors that DeiT III's own files have."""
    name = "vit_small_patch16_rope_ape_224"
    rope = build_timm(name, dynamic_img_size=False)
    torch.save(rope.state_dict(), tmp_path / "rope.pth")
    told = (
        r"gamma_1: so have DeiT III's own files, and models whose rotary positions leave no tensor"
    )
    with pytest.raises(WeightsError, match=told):
        read(tmp_path / "rope.pth")
    saved_by_timm(rope, name, tmp_path / "hub")
    with pytest.raises(
        WeightsError, match=f"config.json says it is '{name}', whose rotary positions are not"
    ):
        read(tmp_path / "hub")
    saved_by_timm(
        rope, "deit3_small_patch16_224", tmp_path / "deit3"
    )  # whoever says so is believed
    assert read(tmp_path / "deit3").format == "timm"


@pytest.mark.parametrize(
    ("fits", "theirs"), [("hf-vit", "vitpose_backbone"), ("hf-dinov2", "rf_detr_dinov2")]
)
def test_model_types_of_other_functions(fits, theirs, tmp_path):
    """RF-DETR's windows and ViTPose's positions leave no tensor; transformers' config has both."""
    name = "ViTModel" if fits == "hf-vit" else "Dinov2Model"
    kind = getattr(transformers, name)
    words = dict(intermediate_size=96) if fits == "hf-vit" else {}
    kind(kind.config_class(**SIZES, **words)).save_pretrained(tmp_path)
    assert read(tmp_path).format == fits
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | dict(model_type=theirs)))
    with pytest.raises(WeightsError, match=f"model_type='{theirs}': another model than"):
        read(tmp_path)


def test_a_position_of_a_class_token_without_the_token(tmp_path):
    """ViTPose's, of a square image: it adds that position to each patch's."""
    state = hf("VitPoseBackbone", **VITPOSE)
    torch.save({k: torch.zeros(v.shape) for k, v in state.items()}, tmp_path / "vitpose.pth")
    with pytest.raises(WeightsError, match=r"no class token: it is of ViTPose"):
        read(tmp_path / "vitpose.pth")


@pytest.mark.parametrize("word", [word for word, form in FORMATS if form.needs])
def test_no_format_is_without_what_it_needs(word):
    """Without positions it is of a model whose positions do not show."""
    form = FORMATS.get(word)()
    form.finish = lambda contents: None
    with pytest.raises(WeightsError, match="has no absolute positions: pos_embed, without which"):
        form.convert({})
