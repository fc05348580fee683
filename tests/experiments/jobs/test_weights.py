"""Weights through the commands: shown, converted, and what a run starts from."""

import io
import re

import pytest
import timm
import torch
from rich.console import Console
from segment_anything.modeling import ImageEncoderViT

from backbones import build_backbone, build_encoder
from backbones.weights import WeightsError, load_encoder
from experiments.errors import UserError
from experiments.jobs import show_weights
from experiments.recipe.config import base_path, build_on_meta, load
from tests.experiments.test_cli import assert_told, experiments, own


@pytest.fixture
def sam(tmp_path):
    """segment-anything's encoder, small, beside something of its prompt encoder."""
    model = ImageEncoderViT(img_size=128, embed_dim=192, depth=2, num_heads=3, use_rel_pos=True,
                            window_size=4, global_attn_indexes=(1,), out_chans=8)  # fmt: skip
    state = {f"image_encoder.{k}": v for k, v in model.state_dict().items()}
    state["prompt_encoder.not_a_point_embed.weight"] = torch.ones(1, 256)
    torch.save(state, tmp_path / "sam.pth")
    return tmp_path / "sam.pth"


def lines_of(function, *words) -> list[str]:
    printed = io.StringIO()
    function(*words, Console(file=printed, width=300))
    return [re.sub(" +", " ", line).strip() for line in printed.getvalue().splitlines()]


def test_a_file_is_shown(sam):
    lines = lines_of(show_weights.show, sam)
    assert lines[0] == f"{sam}: segment-anything sam_vit_* (sam)"
    assert re.fullmatch(r"38 tensors, [\d.,]+ MB, float32", lines[1])
    assert lines[2] == (
        "encoder: embed_dim=192, depth=2, num_heads=3, out_chans=8, norm_eps=1e-06, "
        "pretrain_img_size=128, "
        "relative positions, window_size=4, global blocks [1]"
    )
    assert "loaded relative positions 4 2,816" in lines
    assert "dropped 1 256 SAM's prompt encoder" in lines


def test_named_sizes_are_named(tmp_path):
    torch.save(build_encoder("vit-ti").state_dict(), tmp_path / "encoder.pth")
    (line,) = (x for x in lines_of(show_weights.show, tmp_path / "encoder.pth") if "encoder:" in x)
    assert line.startswith("encoder: vit-ti: embed_dim=192, depth=12, num_heads=3, norm_eps=1e-06")


@pytest.mark.parametrize("size", ["pe-core-ti", "pe-spatial-ti"])
def test_sizes_of_one_shape_are_told_apart(size, tmp_path):
    """By the pre-training's positions: of one shape, their files have the same keys."""
    name = {"pe-core-ti": "core_tiny_patch16_384", "pe-spatial-ti": "spatial_tiny_patch16_512"}
    model = timm.create_model(f"vit_pe_{name[size]}", num_classes=0)
    torch.save(model.state_dict(), tmp_path / "encoder.pth")
    (line,) = (x for x in lines_of(show_weights.show, tmp_path / "encoder.pth") if "encoder:" in x)
    assert line.startswith(f"encoder: {size}: embed_dim=192")


def detector(path, encoder: dict, **more) -> dict:
    state = {f"backbone.net.{k}": v for k, v in encoder.items()}
    state |= {
        "backbone.simfp_2.0.weight": torch.ones(3),
        "head.cls_score.bias": torch.ones(1),
    } | more
    torch.save({"model": state}, path)


def test_what_is_shown_is_what_loading_does(tmp_path):
    """A tensor less, one too many, NaN: told in the words of loading, with exit code 2."""
    words = dict(
        embed_dim=192, depth=2, num_heads=3, use_rel_pos=True, propagation="global", count=1
    )
    encoder = build_encoder("vit-ti", **words)
    path, state = tmp_path / "detector.pth", encoder.state_dict()
    detector(path, state)
    lines = lines_of(show_weights.show, path)
    assert "what loading does" in lines
    assert "loaded pyramid 1 3" in lines
    assert "loaded RetinaNet's head 1 1" in lines

    detector(path, {k: v for k, v in state.items() if k != "blocks.1.norm2.weight"})
    with pytest.raises(
        UserError, match=r"no norms: blocks.1.norm2.weight. Its encoder has"
    ) as told:
        show_weights.show(path, Console(file=io.StringIO()))
    with pytest.raises(WeightsError) as loading:
        load_encoder(build_encoder("vit-ti", **words), path)
    assert str(told.value) == str(loading.value)
    done = experiments("weights", path)
    assert done.returncode == 2
    assert re.search(r"missing +norms +1 +192 +e.g. blocks.1.norm2.weight", done.stdout)

    detector(path, state | {"blocks.0.norm1.bias": torch.full((192,), torch.nan)})
    with pytest.raises(UserError, match=r"blocks.0.norm1.bias has 192 values that are NaN"):
        show_weights.show(path, Console(file=io.StringIO()))

    # A run's, of a residual module and a part of the user's own.
    own = {"backbone.net.blocks.1.residual.gate.weight": torch.ones(5)}
    detector(path, state, **own, **{"memory.bank": torch.ones(7)})
    lines = lines_of(show_weights.show, path)
    assert "unexpected residual modules 1 5 e.g. blocks.1.residual.gate.weight" in lines
    assert "only an encoder that has blocks.1.residual.gate.weight loads it" in lines
    assert "only a detector that has memory loads that" in lines


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (
            "backbone.net.transformer.resblocks.0.ln_1.weight backbone.simfp_2.0.weight",
            "it is of a detector on Perception Encoder that is none of PE-Det's Mask R-CNNs",
        ),
        (
            "backbone.bottom_up.encoder.blocks.0.attn.qkv.weight "
            "backbone.bottom_up.decoder.decoder_blocks.0.attn.qkv.weight",
            "it is of MIMDet: its encoder reads a share of the patches",
        ),
    ],
)
def test_detectors_of_others_are_refused_by_name(keys, told, tmp_path):
    path = tmp_path / "model_final.pth"
    torch.save({"model": {key: torch.ones(1) for key in keys.split()}}, path)
    with pytest.raises(UserError, match=re.escape(f"cannot read {path}: {told}")):
        show_weights.show(path, Console())
    with pytest.raises(UserError, match=re.escape(told)):
        show_weights.write(path, "detectron2", tmp_path / "out.pth", Console())


def test_another_model_is_told_before_anything_trains(small_set, tmp_path):
    path = tmp_path / "sam2.pth"
    torch.save({"image_encoder.trunk.blocks.0.b": torch.ones(1)}, path)
    told = "it is of SAM 2: its encoder is Hiera, no plain ViT"
    assert_told(experiments("weights", path), f"cannot read {path}: {told}")
    words = ["run", "global-vs-conv", "--variants", "none", "--runs", tmp_path / "runs"]
    done = experiments(*words, *own(small_set), "--overrides", f"train.init_weights={path}")
    assert_told(done, f"cannot read {path}: {told}")


def test_a_file_is_converted(sam, tmp_path):
    done = experiments("weights", sam, "--to", "hf", tmp_path / "hf")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [
        "left out: SAM's neck",
        "added: a position of zeros for a cls token, which detection does not read",
        f"hf: {tmp_path}/hf",
    ]
    assert f"{tmp_path}/hf: transformers VitDet* (hf-vitdet)" in lines_of(
        show_weights.show, tmp_path / "hf"
    )


def test_what_is_wrong_is_told(sam, tmp_path):
    with pytest.raises(UserError, match=r"no file of weights at .*no\.pth"):
        show_weights.show(tmp_path / "no.pth", Console())
    with pytest.raises(UserError, match="exists already"):
        show_weights.write(sam, "hf", sam, Console())
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><html>404</html>")
    assert_told(experiments("weights", tmp_path / "page.pth"), "it is a web page, not weights")
    assert_told(experiments("weights", sam, "--to", "hf"), "--to detectron2 OUT")
    out = tmp_path / "out"
    assert_told(experiments("weights", sam, "--to", "onnx", out), "unknown format 'onnx'")
    assert not out.exists()


def test_weights_that_do_not_fit_are_told_before_anything_trains(sam, small_set, tmp_path):
    words = ["run", "global-vs-conv", "--variants", "none", "--runs", tmp_path / "runs"]
    done = experiments(*words, *own(small_set), "--overrides", f"train.init_weights={sam}")
    assert_told(done, f"{sam} (sam) does not fit: ", "Its encoder has embed_dim=192 depth=2")
    assert not list((tmp_path / "runs").rglob("log.txt"))


@pytest.mark.slow
def test_a_run_starts_from_another_detectors_encoder(small_set, tmp_path):
    """Of the run's own shape: its log has the account."""
    cfg = load(base_path("mini", "vit-mini")).model
    words = {k: v for k, v in cfg.backbone.items() if k != "_target_"} | dict(propagation="none")
    detector = torch.nn.Module()
    detector.backbone = build_backbone(**words | dict(count=None))
    assert detector.state_dict().keys() <= build_on_meta(cfg).state_dict().keys()
    torch.save({"model": detector.state_dict()}, tmp_path / "other.pth")
    overrides = f"train.max_iter=1 train.amp=false train.init_weights={tmp_path}/other.pth"
    words = ["run", "global-vs-conv", "--variants", "none", "--runs", tmp_path / "runs"]
    done = experiments(*words, *own(small_set), "--overrides", overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    (log,) = (tmp_path / "runs").rglob("none-*-seed0-*/log.txt")
    text = re.sub(" +", " ", log.read_text())
    assert f"{tmp_path}/other.pth (detectron2)" in text
    assert "loaded attention 24 " in text
    assert "neck and heads of a detector" in text
