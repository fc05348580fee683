"""Checkpoints in the formats of their releases: MAE written with timm's ViT, Swin and MViTv2 with
detectron2's modules, whose keys are the releases' own."""

import pytest
import timm
import torch
from detectron2.modeling import MViT, SwinTransformer
from torch import nn

from backbones import build_encoder
from backbones.weights import load_encoder


@pytest.fixture
def mae(tmp_path):
    """An MAE-like checkpoint of a small ViT: encoder keys, cls token, last norm, decoder."""
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0)
    state = dict(vit.state_dict(), mask_token=torch.zeros(1, 1, 4))
    state["decoder_blocks.0.norm1.weight"] = torch.ones(4)
    path = tmp_path / "mae.pth"
    torch.save({"model": state}, path)
    return vit, path


def test_encoder_computes_what_timm_computes(mae):
    """All blocks global, no cls token: the tokens in front of the last norm."""
    vit, path = mae
    encoder = build_encoder("vit-ti", img_size=224, propagation="global", count=12).eval()
    load_encoder(encoder, path)
    image = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        tokens = vit.eval().patch_embed(image) + vit.pos_embed[:, 1:]
        expected = vit.blocks(tokens).transpose(1, 2).reshape(2, 192, 14, 14)
        torch.testing.assert_close(encoder(image)["last_feat"], expected, rtol=1e-4, atol=1e-5)


def test_what_is_new_keeps_its_initial_values(mae):
    encoder = build_encoder("vit-ti", propagation="conv", use_rel_pos=True)
    before = {k: v.clone() for k, v in encoder.state_dict().items() if "residual" in k}
    load_encoder(encoder, mae[1])
    assert before
    assert all(torch.equal(encoder.state_dict()[k], v) for k, v in before.items())


def test_a_checkpoint_of_another_size_is_refused_by_its_keys(mae):
    with pytest.raises(ValueError, match=r"not usable \['pos_embed \(1, 197, 192\)'"):
        load_encoder(build_encoder("vit-s"), mae[1])
    with pytest.raises(ValueError, match=r"missing \['blocks.12.attn.proj.bias'"):
        load_encoder(build_encoder("vit-ti", depth=14), mae[1])


def swin():
    return SwinTransformer(embed_dim=16, depths=(2, 2), num_heads=(1, 2), out_indices=(0, 1))


def mvit():
    words = dict(embed_dim=16, depth=4, last_block_indexes=(0, 1, 2, 3), img_size=64)
    return MViT(**words, norm_layer=nn.LayerNorm)


@pytest.mark.parametrize(
    ("build", "new", "key"), [(swin, "norm0.", "model"), (mvit, "scale2_norm.", "model_state")]
)
def test_hierarchical_encoders(build, new, key, tmp_path):
    """All but the norms of the maps put out, which classifiers have not; their own are dropped."""
    torch.manual_seed(0)
    trained, encoder = build(), build()
    outputs = tuple(f"{name}_norm." for name in ("scale2", "scale3", "scale4", "scale5"))
    state = trained.state_dict()
    state = {k: v for k, v in state.items() if not k.startswith(("norm", *outputs))}
    if build is mvit:  # convs of images, kept as those of videos of one frame
        state = {k: v.unsqueeze(2) if v.ndim == 4 else v for k, v in state.items()}
    extra = {"norm.weight": torch.ones(4), "head.weight": torch.ones(4, 4)}
    extra["layers.0.blocks.1.attn_mask"] = torch.ones(2)
    torch.save({key: state | extra}, tmp_path / "pretrained.pth")
    before = {k: v.clone() for k, v in encoder.state_dict().items() if k.startswith(new)}
    load_encoder(encoder, tmp_path / "pretrained.pth")
    loaded = encoder.state_dict()
    assert before
    assert all(torch.equal(loaded[k], v) for k, v in before.items())
    assert all(torch.equal(loaded[k], trained.state_dict()[k]) for k in state)


def test_a_missing_norm_inside_swin_is_noticed(tmp_path):
    state = {k: v for k, v in swin().state_dict().items() if "blocks.0.norm1" not in k}
    torch.save({"model": state}, tmp_path / "swin.pth")
    with pytest.raises(ValueError, match=r"missing \['layers.0.blocks.0.norm1.bias'"):
        load_encoder(swin(), tmp_path / "swin.pth")


def test_what_is_no_encoder_or_no_checkpoint(tmp_path):
    torch.save({"state": {}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="is no checkpoint of an encoder: it has no 'model'"):
        load_encoder(swin(), tmp_path / "other.pth")
    torch.save({"model": {}}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match="Linear has no known format of pre-trained weights"):
        load_encoder(nn.Linear(1, 1), tmp_path / "empty.pth")
