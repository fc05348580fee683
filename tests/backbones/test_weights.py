"""MAE checkpoints, in the format of its release, written here with timm's ViT."""

import pytest
import timm
import torch

from backbones import build_encoder
from backbones.weights import load_mae_encoder


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
    load_mae_encoder(encoder, path)
    image = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        tokens = vit.eval().patch_embed(image) + vit.pos_embed[:, 1:]
        expected = vit.blocks(tokens).transpose(1, 2).reshape(2, 192, 14, 14)
        torch.testing.assert_close(encoder(image)["last_feat"], expected, rtol=1e-4, atol=1e-5)


def test_what_is_new_keeps_its_initial_values(mae):
    encoder = build_encoder("vit-ti", propagation="conv", use_rel_pos=True)
    before = {k: v.clone() for k, v in encoder.state_dict().items() if "residual" in k}
    load_mae_encoder(encoder, mae[1])
    assert before
    assert all(torch.equal(encoder.state_dict()[k], v) for k, v in before.items())


def test_a_checkpoint_of_another_size_is_refused_by_its_keys(mae):
    with pytest.raises(ValueError, match=r"not usable \['pos_embed \(1, 197, 192\)'"):
        load_mae_encoder(build_encoder("vit-s"), mae[1])
    with pytest.raises(ValueError, match=r"missing \['blocks.12.attn.proj.bias'"):
        load_mae_encoder(build_encoder("vit-ti", depth=14), mae[1])
