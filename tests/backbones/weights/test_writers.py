"""Weights out: loaded by the other implementation itself, and back to the same bits."""

from functools import partial

import pytest
import timm
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import SwinTransformer
from safetensors.torch import load_file
from segment_anything.modeling import ImageEncoderViT
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    VitDetBackbone,
    VitDetConfig,
    VitDetModel,
)

from backbones import ViT, build_backbone, build_encoder
from backbones.weights import WeightsError, encoder_words, load_encoder, read
from backbones.weights.writers import WRITERS, convert

SAM = dict(
    img_size=96,
    embed_dim=32,
    depth=3,
    num_heads=2,
    out_chans=16,
    use_rel_pos=True,
    window_size=3,
    global_attn_indexes=(2,),
    norm_layer=partial(nn.LayerNorm, eps=1e-6),
)
SMALL = dict(embed_dim=32, depth=3, num_heads=2, window_size=3, img_size=96, pretrain_img_size=64)


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """With every parameter random, also those that start at zero or one."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return module.eval()


def encoder(**words) -> ViT:
    words = SMALL | dict(propagation="global", count=1, use_rel_pos=True) | words
    return randomised(build_encoder("vit-ti", **words))


def saved(module, path):
    torch.save({"model": module.state_dict()}, path)
    return path


def assert_same(theirs, ours):
    assert theirs.keys() == ours.keys()
    for key, tensor in theirs.items():
        assert torch.equal(tensor, ours[key]), key


def assert_close(theirs, ours):
    scale = theirs.abs().max()
    torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=1e-4)


SIZES = [(96, 96), (64, 112)]


@pytest.mark.parametrize(
    ("words", "notes"),
    [
        ({}, []),
        (dict(propagation="conv"), []),
        (dict(use_abs_pos=False), ["added: absolute positions of zeros"]),
    ],
)
def test_transformers_loads_what_is_written(words, notes, tmp_path):
    ours = encoder(**words)
    contents = read(saved(ours, tmp_path / "vitdet.pth"))
    assert convert(contents, "hf", tmp_path / "hf") == notes
    theirs, report = VitDetModel.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    backbone = VitDetBackbone.from_pretrained(tmp_path / "hf").eval()
    for size in SIZES:
        image = torch.randn(1, 3, *size)
        with torch.no_grad():
            expected = ours(image)["last_feat"]
            assert_close(theirs.eval()(image).last_hidden_state, expected)
            assert backbone(image).feature_maps[-1].shape == expected.shape


def test_segment_anything_loads_what_is_written(tmp_path):
    """Positions become those of its image, as the encoder resizes them itself."""
    ours = encoder(out_chans=16)
    notes = convert(read(saved(ours, tmp_path / "ours.pth")), "sam", tmp_path / "sam.pth")
    assert notes == [
        "resized: absolute positions 4x4 -> 6x6, bicubic",
        "left out: cls token's position, which detection does not read",
    ]
    theirs = ImageEncoderViT(**SAM)
    state = torch.load(tmp_path / "sam.pth", weights_only=True)
    theirs.load_state_dict({k.removeprefix("image_encoder."): v for k, v in state.items()})
    image = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        assert_close(theirs.eval()(image), ours(image)["last_feat"])


@pytest.mark.parametrize("to", ["detectron2", "safetensors"])
def test_a_whole_backbone_round_trips(to, tmp_path):
    """detectron2's own checkpointer loads it, nothing missing."""
    ours = nn.Module()
    ours.backbone = randomised(build_backbone("vit-ti", **SMALL, use_rel_pos=True))
    contents = read(saved(ours, tmp_path / "model.pth"))
    out = tmp_path / ("out.pth" if to == "detectron2" else "out.safetensors")
    assert convert(contents, to, out) == []
    again = read(out)
    assert_same(contents.encoder, again.encoder)
    assert_same(contents.detector, again.detector)
    assert contents.detector
    if to == "safetensors":
        assert_same(load_file(out), ours.state_dict())
        return
    other = nn.Module()
    other.backbone = randomised(build_backbone("vit-ti", **SMALL, use_rel_pos=True), seed=1)
    DetectionCheckpointer(other).load(str(out))
    assert_same(ours.state_dict(), other.state_dict())


def vitdet(path):
    config = VitDetConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=96,
        pretrain_image_size=64,
        window_size=3,
        window_block_indices=[0, 1],
        residual_block_indices=[2],
        use_relative_position_embeddings=True,
    )
    model = randomised(VitDetModel(config))
    model.save_pretrained(path)
    return model.state_dict()


def sam(path):
    model = ImageEncoderViT(**SAM)
    state = {f"image_encoder.{k}": v for k, v in randomised(model).state_dict().items()}
    torch.save(state, path)
    return state


@pytest.mark.parametrize("through", ["detectron2", "safetensors"])
@pytest.mark.parametrize(("to", "build"), [("hf", vitdet), ("sam", sam)])
def test_there_and_back_are_the_same_bits(to, build, through, tmp_path):
    state = build(tmp_path / "source")
    convert(read(tmp_path / "source"), through, tmp_path / "between")
    assert convert(read(tmp_path / "between"), to, tmp_path / "back") == []
    if to == "hf":
        back = load_file(tmp_path / "back" / "model.safetensors")
    else:
        back = torch.load(tmp_path / "back", weights_only=True)
    assert_same(state, back)


def test_what_is_left_out_and_added_is_said(tmp_path):
    ours = nn.Module()
    words = SMALL | dict(use_rel_pos=True, out_chans=16, pretrain_use_cls_token=False)
    ours.backbone = randomised(build_backbone("vit-ti", **words))
    contents = read(saved(ours, tmp_path / "model.pth"))
    assert convert(contents, "hf", tmp_path / "hf") == [
        "left out: pyramid",
        "left out: SAM's neck",
        "added: a position of zeros for a cls token, which detection does not read",
    ]
    image = torch.randn(1, 3, 64, 96)
    plain = ViT(**encoder_words(read(tmp_path / "hf"))).eval()
    load_encoder(plain, tmp_path / "hf", show=lambda account: None)
    with torch.no_grad():
        expected = VitDetModel.from_pretrained(tmp_path / "hf").eval()(image).last_hidden_state
        assert_close(expected, plain(image)["last_feat"])


@pytest.mark.parametrize(
    ("to", "words", "message"),
    [
        ("sam", {}, "segment-anything's encoder has SAM's neck, it has none"),
        ("sam", dict(out_chans=8, use_rel_pos=False), "has relative positions, it has none"),
        ("sam", dict(out_chans=8, use_abs_pos=False), "has absolute positions, it has none"),
        ("sam", dict(out_chans=8, propagation="conv"), "no place for its residual modules: blocks"),
        ("hf", dict(propagation="conv", conv_block="basic"), "has bottleneck conv blocks only"),
        ("hf", dict(pre_norm=True), "no place for its norm before the blocks: norm_pre.weight"),
        ("hf", dict(mlp_ratio=2.5), "whole mlp_ratio, this is 2.5"),
        ("hf", dict(layer_scale=1.0), "has no place for its LayerScale: blocks.0.ls1.gamma"),
        ("hf", dict(qk_norm=True), "has no place for its norms of q and k"),
        ("sam", dict(out_chans=8, mlp="swiglu"), "has no place for its MLPs: blocks.0.mlp.w1"),
        ("hf", dict(stem="conv"), "no place for its patch embedding: patch_embed.proj.0.weight"),
        ("caffe", {}, "unknown format 'caffe': allowed are sam, hf, detectron2, safetensors"),
    ],
)
def test_what_cannot_be_said_is_refused(to, words, message, tmp_path):
    contents = read(saved(encoder(**words), tmp_path / "ours.pth"))
    with pytest.raises(WeightsError, match=message):
        convert(contents, to, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["ours.pth"]


def test_heads_that_are_not_known_are_not_made_up(tmp_path):
    ours = encoder(embed_dim=40, num_heads=2, use_rel_pos=False)
    contents = read(saved(ours, tmp_path / "ours.pth"))
    with pytest.raises(WeightsError, match="needs the number of heads, which the file does not"):
        convert(contents, "hf", tmp_path / "out")


@pytest.mark.parametrize("to", ["hf", "detectron2"])
def test_k_without_a_bias_gets_zeros(to, tmp_path):
    ours = encoder(qkv_bias="qv")
    notes = convert(read(saved(ours, tmp_path / "ours.pth")), to, tmp_path / "out")
    assert "added: biases of zeros for k, which has none" in notes
    again = encoder()
    load_encoder(again, tmp_path / "out", show=str)
    image = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        assert_close(again(image)["last_feat"], ours(image)["last_feat"])


@pytest.mark.parametrize("to", WRITERS)
def test_an_existing_file_is_never_overwritten(to, tmp_path):
    path = saved(encoder(), tmp_path / "ours.pth")
    before = path.read_bytes()
    with pytest.raises(WeightsError, match=r"ours.pth exists already: choose another name"):
        convert(read(path), to, path)
    assert path.read_bytes() == before


def test_an_interrupted_conversion_leaves_nothing(tmp_path, monkeypatch):
    contents = read(saved(encoder(), tmp_path / "ours.pth"))

    def full(state, path, *args, **kwargs):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("torch.save", full)
    with pytest.raises(OSError, match="No space left"):
        convert(contents, "detectron2", tmp_path / "out.pth")
    assert [p.name for p in tmp_path.iterdir()] == ["ours.pth"]


def test_what_the_written_file_does_not_show_is_said(tmp_path):
    config = CLIPVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        image_size=32, patch_size=8, hidden_act="quick_gelu",
    )  # fmt: skip
    randomised(CLIPVisionModel(config)).save_pretrained(tmp_path / "clip")
    assert convert(read(tmp_path / "clip"), "safetensors", tmp_path / "clip.safetensors") == [
        "not in the written file: norm_eps=1e-05",
        "not in the written file: act_layer=QuickGELU",
        "not in the written file: num_heads=4",
    ]


@pytest.mark.parametrize("act", ["relu", "silu", "quick_gelu", "gelu_pytorch_tanh"])
def test_activation_and_plan_go_through_transformers_config(act, tmp_path):
    config = VitDetConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=96, window_size=3,
        pretrain_image_size=64, window_block_indices=[0], hidden_act=act, layer_norm_eps=1e-3,
    )  # fmt: skip
    model = randomised(VitDetModel(config))
    model.save_pretrained(tmp_path / "there")
    assert convert(read(tmp_path / "there"), "hf", tmp_path / "back") == []
    image = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        back = VitDetModel.from_pretrained(tmp_path / "back").eval()(image).last_hidden_state
        assert torch.equal(back, model(image).last_hidden_state)


@pytest.mark.parametrize("to", ["detectron2", "safetensors"])
def test_a_converted_classifier_starts_a_detector_as_before(to, tmp_path):
    """What detection adds is new there too."""
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, depth=2)
    swin = SwinTransformer(embed_dim=16, depths=(2, 2), num_heads=(1, 2), out_indices=(0, 1))
    classifier = {k: v for k, v in swin.state_dict().items() if not k.startswith("norm")}
    detection = build_encoder("vit-ti", depth=2, use_rel_pos=True, propagation="conv")
    for name, state, target in (("vit", vit.state_dict(), detection), ("swin", classifier, swin)):
        torch.save({"model": state}, tmp_path / name)
        new = load_encoder(target, tmp_path / name, show=lambda account: None).new
        convert(read(tmp_path / name), to, tmp_path / f"{name}.out")
        account = load_encoder(target, tmp_path / f"{name}.out", show=lambda account: None)
        assert account.new == new
        assert new


def test_nan_is_not_converted(tmp_path):
    ours = encoder()
    with torch.no_grad():
        ours.blocks[1].mlp.fc1.bias[3] = torch.nan
    contents = read(saved(ours, tmp_path / "ours.pth"))
    with pytest.raises(WeightsError, match=r"blocks\.1\.mlp\.fc1\.bias has values that are NaN"):
        convert(contents, "detectron2", tmp_path / "out.pth")


def test_an_activation_that_is_not_known_is_said(tmp_path):
    """timm's SigLIP: a tanh GELU in some sizes, GELU in others, by the same tensors."""
    siglip = timm.create_model(
        "vit_base_patch16_siglip_224", embed_dim=192, depth=2, num_heads=3, img_size=32
    )
    contents = read(saved(siglip, tmp_path / "siglip.pth"))
    assert "not in the written file: act_layer=not known" in convert(
        contents, "detectron2", tmp_path / "out.pth"
    )
    assert "config.json has hidden_act=gelu: the file does not show its activation" in convert(
        contents, "hf", tmp_path / "hf"
    )
