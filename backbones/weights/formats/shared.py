"""What several formats have that `ViT` has not."""

import re

import torch
from torch import Tensor

from ..contents import Contents, WeightsError


def unbiased_stem(contents: Contents) -> None:
    """Zeros for the bias of the patch embedding, which CLIP's has not."""
    kernel = contents.encoder.get("patch_embed.proj.weight")
    if kernel is not None and "patch_embed.proj.bias" not in contents.encoder:
        contents.encoder["patch_embed.proj.bias"] = kernel.new_zeros(kernel.shape[:1])
        contents.notes.append("the bias of the patch embedding is zero: CLIP has none")


def fold_layer_scale(contents: Contents) -> None:
    """LayerScale (arXiv:2103.17239), "blocks.0.ls1.gamma", into the linear map in front of it.

    Raises:
        WeightsError: a block has none though another has, or there is no such map, or it has other
            channels, or integers.
    """
    state = contents.encoder
    scales = [k for k in state if re.search(r"^blocks\.\d+\.ls[12]\.gamma$", k)]
    blocks = {k.split(".")[1] for k in state if re.match(r"blocks\.\d+\.", k)} if scales else ()
    for block in sorted(blocks, key=int):
        for scale, linear in (("ls1.gamma", "attn.proj"), ("ls2.gamma", "mlp.fc2")):
            key = f"blocks.{block}.{scale}"
            if key not in state:
                raise WeightsError(f"has {scales[0]} but no {key}")
            gamma = state.pop(key)
            contents.drop(key, gamma, "LayerScale: multiplied into the linear map before it")
            for part in ("weight", "bias"):
                name = f"blocks.{block}.{linear}.{part}"
                if name not in state:
                    raise WeightsError(f"has {key} but no {name}")
                state[name] = _scaled(name, state[name], key, gamma)


def _scaled(key: str, tensor: Tensor, gamma_key: str, gamma: Tensor) -> Tensor:
    """The tensor with its first axis scaled. Not in half precision: LayerScale is small."""
    for name, values in ((key, tensor), (gamma_key, gamma)):
        if not values.is_floating_point():
            raise WeightsError(f"{name} is {values.dtype}, no floating-point number")
    if tensor.shape[:1] != gamma.shape:
        raise WeightsError(f"{gamma_key} {tuple(gamma.shape)} for {key} {tuple(tensor.shape)}")
    exact = torch.promote_types(tensor.dtype, torch.float32)
    return tensor.to(exact) * gamma.to(exact).reshape(-1, *[1] * (tensor.ndim - 1))
