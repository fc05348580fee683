"""Pre-trained encoder weights."""

import re
from pathlib import Path

import torch
from detectron2.modeling import MViT, SwinTransformer
from torch import nn

from .vit import ViT

# What classifiers and MAE hold beside the encoder, or what detection leaves out: cls token, the
# norm behind the last block, decoder; and Swin's masks, which depend on the image's size.
_NOT_ENCODER = ("cls_token", "mask_token", "norm.", "fc_norm.", "head.", "decoder_")
_NOT_ENCODER_INSIDE = (".attn_mask",)
# What an encoder has beyond its pre-training, by kind; it keeps its initial values.
_NEW = {
    ViT: re.compile(r"\.rel_pos_|\.residual\."),
    SwinTransformer: re.compile(r"^norm\d\."),  # of the maps put out
    MViT: re.compile(r"^scale\d_norm\."),
}


def load_encoder(encoder: nn.Module, path: Path) -> None:
    """Load the encoder of a pre-training's checkpoint.

    Formats: `mae_pretrain_vit_*` (facebookresearch/mae) for ViT, Swin's own
    (microsoft/Swin-Transformer), and MViTv2's own (facebookresearch/mvit), whose keys are those of
    detectron2's modules. Every parameter that pre-training knows must be there with its shape.

    Args:
        encoder: ViT, or detectron2's SwinTransformer or MViT; changed in place.
        path: file with {"model": {key: tensor}} or {"model_state": {key: tensor}}.

    Raises:
        ValueError: missing, unexpected or differently shaped keys, by name; or no such dict.
        OSError, pickle.UnpicklingError: the file cannot be read.
    """
    content = torch.load(path, map_location="cpu", weights_only=True)
    state = next((content[k] for k in ("model", "model_state") if k in content), None)
    if state is None:
        raise ValueError(f"{path} is no checkpoint of an encoder: it has no 'model'")
    state = {
        # MViTv2's own may have the depth of video kernels.
        k: v.squeeze(2) if v.ndim == 5 else v
        for k, v in state.items()
        if not k.startswith(_NOT_ENCODER) and not k.endswith(_NOT_ENCODER_INSIDE)
    }
    own = encoder.state_dict()
    marks = [mark for kind, mark in _NEW.items() if isinstance(encoder, kind)]
    if not marks:
        raise ValueError(f"{type(encoder).__name__} has no known format of pre-trained weights")
    new = {k for k in own if marks[0].search(k) and k not in state}
    wrong = [
        f"{k} {tuple(v.shape)}" for k, v in state.items() if k not in own or own[k].shape != v.shape
    ]
    missing = sorted(own.keys() - state.keys() - new)
    if wrong or missing:
        raise ValueError(
            f"{path} does not fit this encoder: missing {missing[:3]}, not usable {wrong[:3]}"
        )
    encoder.load_state_dict(state, strict=False)
