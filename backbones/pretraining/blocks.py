"""The encoder on sequences of tokens: a cls token, some or all patches of an image, registers.

Its blocks are all global and know no relative positions, so any tokens in any order will do. They
compute what `Block` computes, faster and, in training, with less memory: docs/speed.md.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import Attention
from ..block import Block, LayerScale, Mlp
from ..recompute import recomputed
from ..stems import NormedPatchEmbed, PatchEmbed
from ..vit import ViT


def check_encoder(encoder: ViT) -> None:
    """
    Raises:
        ValueError: the encoder has windows, conv blocks, relative or rotary positions, SAM's neck
            or a `mask_ratio` of its own, so its blocks do not read any sequence of tokens; or other
            parts than those that are run here.
    """
    if any(
        not block.attn.partition.is_global or hasattr(block, "residual") for block in encoder.blocks
    ):
        raise ValueError(
            f"encoder with blocks {', '.join(encoder.plan)} does not fit pre-training: "
            "propagation='global' with count as its depth does"
        )
    for word, wrong in (
        ("use_rel_pos=False", any(block.attn.use_rel_pos for block in encoder.blocks)),
        ("positions without rope", any(block.attn.rope for block in encoder.blocks)),
        ("qk_norm=False", any(block.attn.q_norm for block in encoder.blocks)),
        ("mlp='mlp'", not all(isinstance(block.mlp, Mlp) for block in encoder.blocks)),
        ("layer_scale=None", any(isinstance(block.ls1, LayerScale) for block in encoder.blocks)),
        ("out_chans=None", hasattr(encoder, "neck")),
        ("mask_ratio=0, and the pre-training's own mask_ratio,", encoder.mask_ratio > 0),
    ):
        if wrong:
            raise ValueError(f"encoder does not fit pre-training: one with {word} does")


def cls_token(encoder: ViT) -> nn.Parameter | None:
    """(1, 1, C), where the encoder's positions have an entry for it."""
    if encoder.pretrain_use_cls_token:
        return nn.Parameter(torch.empty(1, 1, encoder.spec.dim).normal_(std=0.02))
    return None


def is_patchwise(encoder: ViT) -> bool:
    """Whether a token depends on the pixels of its patch only."""
    return isinstance(encoder.patch_embed, PatchEmbed | NormedPatchEmbed)


def patch_tokens(encoder: ViT, image_BCHW: Tensor, kept_BV: Tensor | None = None) -> Tensor:
    """What `encoder.tokens` gives, as a sequence; of the patches `kept_BV` only.

    Args:
        image_BCHW: whole patches.
        kept_BV: numbers of patches, of each image; None: all, in order.

    Returns:
        (B, V, C).
    """
    if kept_BV is None:
        return encoder.tokens(image_BCHW).flatten(1, 2)
    if not is_patchwise(encoder):
        return of_each(encoder.tokens(image_BCHW).flatten(1, 2), kept_BV)
    # A picture made of the kept patches, side by side.
    patch = encoder.patch_embed.patch_size
    kept_BVP = of_each(patches_of(image_BCHW, patch), kept_BV)
    picture = kept_BVP.unflatten(2, (patch, patch, -1)).permute(0, 4, 2, 1, 3).flatten(3)
    x_BVC = encoder.patch_embed(picture)[:, 0]
    if encoder.pos_embed is not None:
        size = (image_BCHW.shape[2] // patch, image_BCHW.shape[3] // patch)
        pos = encoder.absolute_positions(size)
        x_BVC = x_BVC + pos.flatten(0, 2)[kept_BV]
    return encoder.norm_pre(x_BVC) if hasattr(encoder, "norm_pre") else x_BVC


def encode(encoder: ViT, cls: Tensor | None, x_BVC: Tensor) -> Tensor:
    """The encoder's blocks on a cls token, if there is one, and `patch_tokens`.

    Returns:
        (B, V, C), with a cls token in front (B, 1 + V, C), before any norm.
    """
    count, parts = x_BVC.shape[1], [x_BVC]
    if cls is not None:
        first = cls if encoder.pos_embed is None else cls + encoder.pos_embed[:, :1]
        parts.insert(0, encoder.norm_pre(first) if hasattr(encoder, "norm_pre") else first)
        count += 1
    if encoder.registers is not None:
        parts.append(encoder.registers)
    exact = encoder.blocks[0].attn.proj.weight.dtype  # of what blocks add to, under autocast too
    x_BNC = torch.cat([part.to(exact).expand(len(x_BVC), -1, -1) for part in parts], 1)
    whole = encoder.use_act_checkpoint and encoder.training
    return run_blocks(encoder.blocks, x_BNC, whole)[:, :count]


def features(encoder: ViT, cls: Tensor | None, image_BCHW: Tensor) -> Tensor:
    """What the encoder makes of whole images, (B, N, C) without a cls token: a detector's map."""
    x_BNC = patch_tokens(encoder, image_BCHW)
    return encode(encoder, cls, x_BNC)[:, -x_BNC.shape[1] :]


def run_blocks(
    blocks: Sequence[Block], x_BNC: Tensor, whole: bool = False, wanted: int | None = None
) -> Tensor:
    """Blocks on any tokens, (B, N, C) -> (B, N, C).

    Args:
        whole: keep only what goes into a block for the backward pass, and compute it again.
        wanted: give only that many tokens, the last ones: (B, wanted, C).
    """
    # As a map of one row: linear layers on maps are faster on a CPU, see `kernels.Linear`.
    x_B1NC = x_BNC[:, None]
    for i, block in enumerate(blocks):
        of_last = wanted if i == len(blocks) - 1 else None
        run = partial(_run, block, wanted=of_last or x_BNC.shape[1])
        x_B1NC = recomputed(run, x_B1NC, of=block) if whole else run(x_B1NC)
    return x_B1NC[:, 0]


def _run(block: Block, x_B1NC: Tensor, wanted: int) -> Tensor:
    attended = _attend(block.attn, block.norm1, x_B1NC, wanted)
    x_B1NC = x_B1NC[:, :, -wanted:] + block.drop_path(attended, 0)
    hidden = _behind(block.norm2, block.mlp.fc1, x_B1NC)
    return x_B1NC + block.drop_path(_behind(block.mlp.act, block.mlp.fc2, hidden), 1)


def _attend(attn: Attention, norm: nn.Module, x_B1NC: Tensor, wanted: int) -> Tensor:
    """By torch's kernel: without relative positions it needs no tokens x tokens scores either."""
    qkv_BNE = _behind(norm, attn.qkv, x_B1NC)[:, 0]
    q, k, v = qkv_BNE.unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    x_BMND = F.scaled_dot_product_attention(q[:, :, -wanted:], k, v)
    return attn.proj(x_BMND.transpose(1, 2).flatten(2)[:, None])


def _behind(cheap: nn.Module, linear: nn.Module, x: Tensor) -> Tensor:
    """`linear(cheap(x))`. What a norm or an activation puts out, two fifths of all that the
    backward pass reads, is not kept but made again; there torch stops before the linear layer."""
    return recomputed(lambda x: linear(cheap(x)), x, of=cheap)


def patches_of(image_BCHW: Tensor, patch: int) -> Tensor:
    """(B, 3, H, W) -> (B, N, patch * patch * 3): rows of pixels, colours last, as MAE's."""
    B, C, H, W = image_BCHW.shape
    x = image_BCHW.reshape(B, C, H // patch, patch, W // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(B, -1, patch * patch * C)


def image_of(patches_BNP: Tensor, patch: int, rows: int) -> Tensor:
    """The inverse of `patches_of`, for an image of `rows` rows of patches."""
    x = patches_BNP.unflatten(2, (patch, patch, -1)).unflatten(1, (rows, -1))
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def of_each(x_BNC: Tensor, numbers_BV: Tensor) -> Tensor:
    """Some rows of each image: (B, N, C) -> (B, V, C)."""
    return x_BNC[torch.arange(len(x_BNC), device=x_BNC.device)[:, None], numbers_BV]


def draw(noise_BN: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor]:
    """Patches in the order of their noise: the first are kept, (B, V), the others hidden,
    (B, N - V). V is rounded down, as by MAE."""
    N = noise_BN.shape[1]
    V = int(N * (1 - mask_ratio))
    return noise_BN.argsort(1).split([V, N - V], 1)
