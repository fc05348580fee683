"""docs/weights.md against the code: the table of formats, and the example of an account."""

import timm
import torch

from backbones import build_encoder
from backbones.weights import FORMATS, load_encoder
from backbones.weights.foreign import MODELS
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "weights.md").read_text()


def format_row(word: str, form: type) -> str:
    left_out = ", ".join(dict.fromkeys(form.drop.values()))
    return f"| `{word}` | {form.title} | {left_out} |\n"


def test_formats():
    rows = [format_row(word, form) for word, form in FORMATS]
    assert "".join(rows) in PAGE


def test_models_that_are_refused():
    assert "".join(f"| {model.name} | {model.why} |\n" for model in MODELS) in PAGE


def test_example(tmp_path, monkeypatch):
    """MAE's keys are timm's without a head."""
    monkeypatch.chdir(tmp_path)
    vit = timm.create_model("vit_base_patch16_224", pretrained=False, num_classes=0)
    torch.save({"model": vit.state_dict()}, "mae_pretrain_vit_base.pth")
    with torch.device("meta"):
        encoder = build_encoder("vit-b", use_rel_pos=True, propagation="conv")
    account = load_encoder(encoder.to_empty(device="cpu"), "mae_pretrain_vit_base.pth")
    shown = "".join(f"    {line}".rstrip() + "\n" for line in str(account).splitlines())
    assert shown in PAGE
