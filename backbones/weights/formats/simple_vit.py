"""vit-pytorch's `SimpleViT`."""

import math
import re

import torch
from torch import Tensor

from ... import positions
from ..contents import FORMATS, Contents, Format, State, WeightsError


@FORMATS.register("simple_vit")
class SimpleViT(Format):
    """`vit_pytorch.simple_vit.SimpleViT` (arXiv:2205.01580), for RGB images.

    Its attention has no biases: zeros, which compute the same. Heads are taken to have the default
    64 channels (`dim_head`), which a file does not show.
    """

    title = "vit-pytorch SimpleViT"
    mark = r"^transformer\.layers\.\d+\.0\.to_out\.weight$"
    drop = {
        r"^register_tokens$": "registers",
        r"^transformer\.norm\.": "norm behind the last block",
        r"^linear_head\.": "classifier's head",
    }
    registers = r"^register_tokens$"
    rename = (
        (r"^to_patch_embedding\.1\.", "patch_embed.norm_pixels."),
        (r"^to_patch_embedding\.2\.", "patch_embed.proj."),
        (r"^to_patch_embedding\.3\.", "patch_embed.norm_token."),
        (r"^transformer\.layers\.(\d+)\.0\.norm\.", r"blocks.\1.norm1."),
        (r"^transformer\.layers\.(\d+)\.0\.to_qkv\.", r"blocks.\1.attn.qkv."),
        (r"^transformer\.layers\.(\d+)\.0\.to_out\.", r"blocks.\1.attn.proj."),
        (r"^transformer\.layers\.(\d+)\.1\.net\.0\.", r"blocks.\1.norm2."),
        (r"^transformer\.layers\.(\d+)\.1\.net\.1\.", r"blocks.\1.mlp.fc1."),
        (r"^transformer\.layers\.(\d+)\.1\.net\.3\.", r"blocks.\1.mlp.fc2."),
    )
    settings = {"norm_eps": 1e-5}

    def recognises(self, state: State) -> bool:
        # vit-pytorch's other models have positions, or other pixels, in front of these blocks.
        return super().recognises(state) and "to_patch_embedding.2.weight" in state

    def finish(self, contents: Contents) -> None:
        state = contents.encoder
        for key in ("norm_pixels.weight", "norm_pixels.bias", "proj.weight"):
            if (key := f"patch_embed.{key}") in state:
                state[key] = _channels_first(key, state[key])
        for key in [k for k in state if re.search(r"\.attn\.(qkv|proj)\.weight$", k)]:
            shape = tuple(state[key].shape)
            times = 3 if ".qkv." in key else 1
            if len(shape) != 2 or shape[0] != times * shape[1] or shape[1] % 4 or shape[1] < 8:
                raise WeightsError(
                    f"{key} is {shape}: ViT computes heads * dim_head = dim, a multiple of 4"
                )
            state.setdefault(key.replace("weight", "bias"), state[key].new_zeros(shape[0]))
            if shape[1] % 64 == 0:
                contents.settings["num_heads"] = shape[1] // 64
        contents.positions = sincos_positions
        contents.notes += [
            "biases of attention are zeros: this format has none",
            "heads are taken to have 64 channels, vit-pytorch's default: a file does not show them",
        ]


def sincos_positions(grid: tuple[int, int], channels: int) -> Tensor:
    """SimpleViT's absolute positions, (1, rows, columns, channels): sines and cosines of the
    column, then of the row, at `channels` / 4 (2 or more) frequencies from 1 to 1 / 10,000."""
    steps = torch.arange(channels // 4)
    return positions.sincos_positions(grid, 1 / 10_000 ** (steps / steps[-1]))


def _channels_first(key: str, tensor: Tensor) -> Tensor:
    """Last axis, a patch's pixels: from (row, column, channel) to (channel, row, column)."""
    side = math.isqrt(tensor.shape[-1] // 3) if tensor.ndim else 0
    if not side or 3 * side**2 != tensor.shape[-1]:
        raise WeightsError(f"{key} is {tuple(tensor.shape)}: no square patches of three channels")
    return tensor.unflatten(-1, (side, side, 3)).movedim(-1, -3).flatten(-3)
