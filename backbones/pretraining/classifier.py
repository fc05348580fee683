"""Supervised pre-training: ViT (arXiv:2010.11929) and SimpleViT (arXiv:2205.01580), and on a random
part of the tokens (FLIP, arXiv:2212.00794)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from ..arguments import number, whole_number
from ..registries import choose
from ..vit import ViT
from . import blocks
from .inputs import PIXEL_MEAN, PIXEL_STD, Pixels

POOLS = ("cls", "mean")


class Classifier(nn.Module):
    """Encoder, pooling, norm, linear head, as the training loop calls them.

    pool="cls" is the function of torchvision's `vit_b_16` and timm's `vit_base_patch16_224`,
    pool="mean" of timm's with global_pool="avg", which has a cls token too but does not pool it. An
    encoder without cls token and with pool="mean" is SimpleViT's, but for its norm before pooling.

    Args:
        encoder: `ViT` whose blocks are all global, without relative positions. With its
            `pretrain_use_cls_token` a cls token goes first.
        num_classes: categories.
        pool: what is classified: "cls", the norm of the cls token; "mean", the norm of the mean of
            the other tokens.
        mask_ratio: share of an image's patches that a step of training leaves out, drawn for each
            image; FLIP's half. Unmasked tuning is the same with 0.
        label_smoothing: of cross entropy.
        mixup, cutmix: alpha of either, 0: without. With both each batch gets one, at random.
        pixel_mean, pixel_std: of red, green and blue, in 0..255.

    Raises:
        ValueError: another encoder; pool="cls" of one without a cls token; numbers out of range.
    """

    def __init__(
        self,
        encoder: ViT,
        num_classes: int,
        pool: str = "cls",
        mask_ratio: float = 0.0,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
    ):
        super().__init__()
        blocks.check_encoder(encoder)
        choose("pool", pool, POOLS)
        if pool == "cls" and not encoder.pretrain_use_cls_token:
            raise ValueError(
                "pool='cls' does not fit: the encoder has no cls token "
                "(pretrain_use_cls_token), pool='mean' does"
            )
        whole_number("num_classes", num_classes, least=1)
        number("mask_ratio", mask_ratio, least=0, below=1)
        number("label_smoothing", label_smoothing, least=0, below=1)
        patches = (encoder.img_size // encoder.patch_embed.patch_size) ** 2
        if int(patches * (1 - mask_ratio)) == 0:
            raise ValueError(f"mask_ratio={mask_ratio} does not fit: it leaves out all tokens")
        self.encoder = encoder
        self.cls_token = blocks.cls_token(encoder)
        self.norm = nn.LayerNorm(encoder.spec.dim, eps=1e-6)
        self.head = nn.Linear(encoder.spec.dim, num_classes)
        # ViT's head starts at zero (arXiv:2010.11929, D.1.1 and its code).
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.num_classes = num_classes
        self.pool = pool
        self.mask_ratio = mask_ratio
        self.label_smoothing = label_smoothing
        mixes = ((v2.MixUp, number("mixup", mixup, 0)), (v2.CutMix, number("cutmix", cutmix, 0)))
        with torch.device("cpu"):  # they draw numbers, also of a model on the meta device
            self.mixes = [
                mix(alpha=alpha, num_classes=num_classes) for mix, alpha in mixes if alpha
            ]
        self.pixels = Pixels(pixel_mean, pixel_std)

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor] | Tensor:
        """Items with an "image", uint8 (3, H, W) RGB -> logits (B, num_classes); in training items
        with a "label" too -> {"loss_cls": ()}."""
        image_BCHW = self.pixels.of(batch)
        if not self.training:
            return self.logits(image_BCHW)
        label = _labels(batch, image_BCHW.device)
        if self.mixes:
            with torch.device("cpu"):
                mix = self.mixes[int(torch.randint(len(self.mixes), ()))]
                image_BCHW, label = mix(image_BCHW, label)
        kept_BV = None
        if self.mask_ratio:
            patch = self.encoder.patch_embed.patch_size
            N = image_BCHW.shape[2] // patch * (image_BCHW.shape[3] // patch)
            noise_BN = torch.rand(len(image_BCHW), N, device=image_BCHW.device)
            kept_BV, _ = blocks.draw(noise_BN, self.mask_ratio)
        logits = self.logits(image_BCHW, kept_BV)
        return dict(loss_cls=F.cross_entropy(logits, label, label_smoothing=self.label_smoothing))

    def validate(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Of each image, (B,): cross entropy, and whether the likeliest category is right."""
        logits = self(batch).float()
        label = _labels(batch, logits.device)
        return dict(
            loss_cls=F.cross_entropy(logits, label, reduction="none"),
            accuracy=(logits.argmax(1) == label).float(),
        )

    def logits(self, image_BCHW: Tensor, kept_BV: Tensor | None = None) -> Tensor:
        """Normalised images -> (B, num_classes), from all patches or those of `kept_BV` only."""
        x_BVC = blocks.patch_tokens(self.encoder, image_BCHW, kept_BV)
        x_BNC = blocks.encode(self.encoder, self.cls_token, x_BVC)
        x_BC = x_BNC[:, 0] if self.pool == "cls" else x_BNC[:, -x_BVC.shape[1] :].mean(1)
        return self.head(self.norm(x_BC))


def _labels(batch: list[dict[str, Any]], device: torch.device) -> Tensor:
    return torch.tensor([item["label"] for item in batch], device=device)
