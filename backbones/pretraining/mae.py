"""Masked Autoencoders (MAE, arXiv:2111.06377): an encoder learns to see by filling in pictures.

Most patches of an image are hidden. The encoder reads the others only; a small decoder, thrown
away afterwards, predicts the pixels of the hidden ones. Parameters and loss are those of the
original, https://github.com/facebookresearch/mae. To blocks without relative positions the order
of tokens is nothing: they stay as they were drawn, visible ones first, with the positions to match.

Shape letters beyond those of backbones/partition.py:
    N patches of an image, V of them visible, P = patch * patch * 3 pixels of a patch.
"""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..arguments import number, whole_number
from ..block import BlockParts, Mlp
from ..kernels import Linear
from ..partition import Partition
from ..positions import fixed_positions
from ..stems import NormedPatchEmbed, PatchEmbed
from ..vit import ViT
from . import blocks
from .blocks import draw, image_of, of_each, patches_of
from .inputs import PIXEL_MEAN, PIXEL_STD, Pixels


class Reconstruction(NamedTuple):
    """Pictures (B, 3, H, W) with pixels in 0..255, and which patches were hidden."""

    shown: Tensor  # hidden patches have the mean colour
    filled: Tensor  # hidden patches as predicted
    hidden: Tensor  # bool (B, H / patch, W / patch)


class MaskedAutoencoder(nn.Module):
    """Encoder and decoder of MAE, as the training loop calls them.

    Weights begin as the original's: Xavier uniform in linear layers and patch embedding, cls and
    mask token normal of std 0.02. A stem that reads beyond a patch, as "conv" does, sees hidden
    patches in the mean colour, so that no token knows what it is asked for.

    Args:
        encoder: `ViT` whose blocks are all global, without relative positions. With its
            `pretrain_use_cls_token` a cls token goes first.
        decoder_dim, decoder_depth, decoder_heads: channels, blocks and heads of the decoder.
        mask_ratio: share of an image's patches that are hidden.
        norm_pixels: predict pixels less the mean of their patch, over its standard deviation.
        pixel_mean, pixel_std: of red, green and blue, in 0..255.

    Raises:
        ValueError: another encoder; a ratio that hides no patch, or all; channels that positions or
            heads do not divide.
    """

    def __init__(
        self,
        encoder: ViT,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        mask_ratio: float = 0.75,
        norm_pixels: bool = True,
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
    ):
        super().__init__()
        blocks.check_encoder(encoder)
        self.patch_size = encoder.patch_embed.patch_size
        side = encoder.img_size // self.patch_size
        whole_number("decoder_depth", decoder_depth, least=1)
        whole_number("decoder_heads", decoder_heads, least=1)
        number("mask_ratio", mask_ratio, least=0, below=1)
        if not 0 < int(side**2 * (1 - mask_ratio)) < side**2:
            raise ValueError(
                f"mask_ratio={mask_ratio} does not fit: of {side**2} patches it hides none, or all"
            )
        if decoder_dim % 4 or decoder_dim % decoder_heads:
            raise ValueError(
                f"decoder_dim={decoder_dim} does not fit: a multiple of 4 and of "
                f"decoder_heads={decoder_heads} does"
            )
        self.encoder = encoder
        self.cls_token = blocks.cls_token(encoder)
        self.norm = nn.LayerNorm(encoder.spec.dim, eps=1e-6)
        self.decoder = _Decoder(
            encoder.spec.dim,
            decoder_dim,
            decoder_depth,
            decoder_heads,
            side,
            3 * self.patch_size**2,
            self.cls_token is not None,
        )
        self.mask_ratio = mask_ratio
        self.norm_pixels = norm_pixels
        self.pixels = Pixels(pixel_mean, pixel_std)
        # What both are made of; not what a user's stem or residual modules begin with.
        own = itertools.chain.from_iterable(block.linears for block in encoder.blocks)
        for module in (encoder.patch_embed, *own, *self.decoder.modules()):
            _init_weights(module)

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Items with an "image", uint8 (3, img_size, img_size) RGB -> {"loss_pixels": ()}."""
        return dict(loss_pixels=self.losses(self.pixels.of(batch)).mean())

    def validate(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """As `forward`, but of each image: {"loss_pixels": (B,)}."""
        return dict(loss_pixels=self.losses(self.pixels.of(batch)))

    def losses(self, image_BCHW: Tensor, noise_BN: Tensor | None = None) -> Tensor:
        """Mean squared error over the hidden patches of each image, (B,).

        Args:
            image_BCHW: normalised.
            noise_BN: patches with the least are visible; default: uniform, of torch's generator.

        Raises:
            ValueError: images of another size than the encoder's `img_size`.
        """
        visible_BV, hidden_BH = self._draw(image_BCHW, noise_BN)
        predicted_BHP = self._predict(image_BCHW, visible_BV, hidden_BH)
        target_BHP = of_each(patches_of(image_BCHW, self.patch_size), hidden_BH)
        if self.norm_pixels:
            mean, std = _statistics(target_BHP)
            target_BHP = (target_BHP - mean) / std
        return (predicted_BHP - target_BHP).square().mean((1, 2))

    @torch.no_grad()
    def reconstruct(self, image_BCHW: Tensor, noise_BN: Tensor | None = None) -> Reconstruction:
        """What the model makes of images with hidden patches. Where `norm_pixels`, a hidden patch
        gets its true mean and standard deviation.

        Args:
            image_BCHW: RGB in 0..255.
            noise_BN: as of `losses`.
        """
        image_BCHW = self.pixels(image_BCHW)
        visible_BV, hidden_BH = self._draw(image_BCHW, noise_BN)
        predicted_BHP = self._predict(image_BCHW, visible_BV, hidden_BH).to(image_BCHW.dtype)
        if self.norm_pixels:
            patches_BNP = patches_of(image_BCHW, self.patch_size)
            mean, std = _statistics(of_each(patches_BNP, hidden_BH))
            predicted_BHP = predicted_BHP * std + mean
        rows = image_BCHW.shape[2] // self.patch_size
        is_hidden_BN = torch.zeros_like(torch.cat([visible_BV, hidden_BH], 1), dtype=torch.bool)
        is_hidden_BN.scatter_(1, hidden_BH, True)
        pictures = (
            self.pixels.back(self._with_hidden(image_BCHW, hidden_BH, value)).clamp(0, 255)
            for value in (0, predicted_BHP)
        )
        return Reconstruction(*pictures, is_hidden_BN.unflatten(1, (rows, -1)))

    def _draw(self, image_BCHW: Tensor, noise_BN: Tensor | None) -> tuple[Tensor, Tensor]:
        size = self.encoder.img_size
        if tuple(image_BCHW.shape[2:]) != (size, size):
            raise ValueError(
                f"images of {tuple(image_BCHW.shape[2:])} pixels do not fit: the encoder's "
                f"img_size={size} does"
            )
        if noise_BN is None:
            N = (size // self.patch_size) ** 2
            noise_BN = torch.rand(len(image_BCHW), N, device=image_BCHW.device)
        return draw(noise_BN, self.mask_ratio)

    def _predict(self, image_BCHW: Tensor, visible_BV: Tensor, hidden_BH: Tensor) -> Tensor:
        """(B, N - V, P): pixels of the hidden patches, in their order."""
        if not blocks.is_patchwise(self.encoder):
            image_BCHW = self._with_hidden(image_BCHW, hidden_BH, 0)
        x_BVC = blocks.patch_tokens(self.encoder, image_BCHW, visible_BV)
        x_BVC = self.norm(blocks.encode(self.encoder, self.cls_token, x_BVC))
        return self.decoder(x_BVC, visible_BV, hidden_BH)

    def _with_hidden(self, image_BCHW: Tensor, hidden_BH: Tensor, value: Tensor | float) -> Tensor:
        """The image with other pixels in its hidden patches."""
        patches_BNP = patches_of(image_BCHW, self.patch_size)
        images = torch.arange(len(image_BCHW), device=image_BCHW.device)[:, None]
        patches_BNP[images, hidden_BH] = value
        return image_of(patches_BNP, self.patch_size, image_BCHW.shape[2] // self.patch_size)


class _Decoder(nn.Module):
    """From visible tokens to the pixels of hidden patches."""

    def __init__(
        self, in_dim: int, dim: int, depth: int, heads: int, side: int, pixels: int, has_cls: bool
    ):
        super().__init__()
        norm_layer = partial(nn.LayerNorm, eps=1e-6)
        self.embed = Linear(in_dim, dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim).normal_(std=0.02))
        pos_NC = fixed_positions((side, side), dim).flatten(0, 2)
        self.register_buffer("pos_embed", pos_NC, persistent=False)
        self.has_cls = has_cls  # whose position is zero
        mlp = partial(Mlp, hidden=4 * dim, act_layer=nn.GELU)
        parts = BlockParts(
            dim=dim, num_heads=heads, grid=(side, side), mlp=mlp, norm_layer=norm_layer
        )
        self.blocks = nn.ModuleList(parts.block(Partition()) for _ in range(depth))
        self.norm = norm_layer(dim)
        self.pred = Linear(dim, pixels)

    def forward(self, x_BVC: Tensor, visible_BV: Tensor, hidden_BH: Tensor) -> Tensor:
        """(B, V, C) or (B, 1 + V, C) -> (B, N - V, P)."""
        x_BVC = self.embed(x_BVC[:, None])[:, 0]
        mask_BHC = self.mask_token.to(x_BVC.dtype).expand(*hidden_BH.shape, -1)
        pos_BNC = self.pos_embed[torch.cat([visible_BV, hidden_BH], 1)]
        if self.has_cls:
            pos_BNC = nn.functional.pad(pos_BNC, (0, 0, 1, 0))
        x_BNC = torch.cat([x_BVC, mask_BHC], 1) + pos_BNC
        x_BHC = blocks.run_blocks(self.blocks, x_BNC, wanted=hidden_BH.shape[1])
        return self.pred(self.norm(x_BHC)[:, None])[:, 0]


def _statistics(patches_BNP: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch, (B, N, 1) each."""
    var, mean = torch.var_mean(patches_BNP, -1, keepdim=True)
    return mean, (var + 1e-6).sqrt()


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif type(module) is NormedPatchEmbed:
        _init_weights(module.proj)
    elif type(module) is PatchEmbed:
        nn.init.xavier_uniform_(module.proj.weight.flatten(1))
