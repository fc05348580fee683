"""Pre-trained encoder weights."""

from pathlib import Path

import torch

from .vit import ViT

# What MAE's checkpoints hold beside the encoder, or what detection leaves out: cls token, the norm
# behind the last block, decoder.
_NOT_ENCODER = ("cls_token", "mask_token", "norm.", "fc_norm.", "head.", "decoder_")


def load_mae_encoder(encoder: ViT, path: Path) -> None:
    """Load the encoder of an MAE checkpoint, `mae_pretrain_vit_*` (facebookresearch/mae).

    Relative positions and residual conv blocks are not in it and keep their initial values; every
    other parameter must be there with its shape.

    Args:
        encoder: changed in place.
        path: file with {"model": {key: tensor}}.

    Raises:
        ValueError: missing, unexpected or differently shaped keys, by name.
        OSError, pickle.UnpicklingError: the file cannot be read.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)["model"]
    state = {k: v for k, v in state.items() if not k.startswith(_NOT_ENCODER)}
    own = encoder.state_dict()
    new = {k for k in own if ".rel_pos_" in k or ".residual." in k}
    wrong = [
        f"{k} {tuple(v.shape)}" for k, v in state.items() if k not in own or own[k].shape != v.shape
    ]
    missing = sorted(own.keys() - state.keys() - new)
    if wrong or missing:
        raise ValueError(
            f"{path} does not fit this encoder: missing {missing[:3]}, not usable {wrong[:3]}"
        )
    encoder.load_state_dict(state, strict=False)
