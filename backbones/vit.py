"""The plain ViT encoder of ViTDet (arXiv:2203.16527), with every propagation strategy.

Constructor words and state-dict keys are those of detectron2's `ViT` where it has them, so its
checkpoints load strictly. See partition.py for the shape letters.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from .arguments import builder, number, whole_number
from .attention import ATTENTION, Attention
from .kernels import Linear, in_chunks
from .norms import LayerNorm2d
from .partition import Partition, Windows
from .positions import absolute_positions
from .propagation import EncoderSpec, propagation_blocks
from .registries import CONV_BLOCKS, PROPAGATIONS, STEMS, choose, lookup


class Mlp(nn.Sequential):
    """Linear, activation, linear, on the last axis."""

    def __init__(self, dim: int, hidden: int, act_layer: Callable[[], nn.Module]):
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.act = act_layer()
        self.fc2 = Linear(hidden, dim)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return in_chunks(super().forward, x_BHWC, self.fc1.out_features)


class Block(nn.Module):
    """One transformer block: attention within the groups of `partition`, MLP, and a residual
    module behind them where a propagation strategy asks for one.

    Args:
        dim, num_heads, partition, grid, qkv_bias, use_rel_pos, rel_pos_zero_init, attention: as of
            `Attention`.
        residual: module on (B, C, H, W), or None.
        mlp_ratio: hidden channels of the MLP over `dim`.
        drop_path: probability that a sample skips a branch in training.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        partition: Partition,
        grid: tuple[int, int],
        residual: nn.Module | None = None,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        use_rel_pos: bool = False,
        rel_pos_zero_init: bool = True,
        attention: str = "fused",
    ):
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = Attention(
            dim, num_heads, partition, grid, qkv_bias, use_rel_pos, rel_pos_zero_init, attention
        )
        self.drop_path = StochasticDepth(drop_path, mode="row")
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer)
        if residual is not None:
            self.residual = residual

    @property
    def word(self) -> str:
        """What this block does: "window", "global", "window + residual", ..."""
        return self.attn.partition.word + (" + residual" if hasattr(self, "residual") else "")

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x_BHWC = x_BHWC + self.drop_path(self.attn(self.norm1(x_BHWC)))
        x_BHWC = x_BHWC + self.drop_path(self.mlp(self.norm2(x_BHWC)))
        if hasattr(self, "residual"):
            x_BHWC = self.residual(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x_BHWC


class ViT(Backbone):
    """Plain ViT encoder: windowed blocks, some of which propagate across windows.

    Args:
        img_size: image side in pixels; sizes relative-position tables of global blocks.
        patch_size: pixels along a patch.
        in_chans: image channels.
        embed_dim: channels of a token.
        depth: blocks.
        num_heads: heads of each block.
        mlp_ratio: hidden channels of the MLPs over `embed_dim`.
        qkv_bias: whether q, k and v have a bias.
        drop_path_rate: stochastic depth of the last block; grows linearly from 0 at the first.
        norm_layer: builds a norm from a number of channels.
        act_layer: builds the MLPs' activation, which treats each token alone.
        use_abs_pos: add absolute positions to the tokens.
        use_rel_pos: add decomposed relative positions in every attention.
        rel_pos_zero_init: start relative positions at zero.
        window_size: tokens along a window.
        window_block_indexes, residual_block_indexes: detectron2's way to say the plan, instead of
            `propagation`, `count` and `placement`: blocks that use windows (all others are
            global), blocks that are followed by a residual conv block.
        use_act_checkpoint: recompute each block's activations in the backward pass.
        pretrain_img_size: image side of the pre-training, sizes the absolute positions.
        pretrain_use_cls_token: absolute positions start with one of a cls token.
        out_feature: name of the output, the last block's map.
        propagation: how windows exchange information, a word of `PROPAGATIONS`: "none", "global",
            "conv", "shifted" or your own. None means "global", the paper's default.
        count: how many blocks propagate. None: the strategy's own, see `default_count`.
        placement: which ones, see `propagation_blocks`: "even", "first" or "last".
        conv_block: for "conv", a word of `CONV_BLOCKS`: "naive", "basic" or "bottleneck".
        stem: image to tokens, a word of `STEMS`: "patchify" or "conv".
        attention: the kernel, "fused" or "reference": one function, see `Attention`.
        stages: stages of equal length (as equal as `depth` allows, see "even" placement). The maps
            at the ends of all but the last are outputs too: "stage1_feat", "stage2_feat", ...
        pre_norm: one more norm in front of the first block (CLIP, arXiv:2103.00020).
        out_chans: channels of SAM's neck behind the last block: a 1x1 and a 3x3 conv, each with a
            norm (arXiv:2304.02643). None: no neck.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """

    def __init__(
        self,
        img_size: int = 1024,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        use_abs_pos: bool = True,
        use_rel_pos: bool = False,
        rel_pos_zero_init: bool = True,
        window_size: int = 14,
        window_block_indexes: Sequence[int] | None = None,
        residual_block_indexes: Sequence[int] | None = None,
        use_act_checkpoint: bool = False,
        pretrain_img_size: int = 224,
        pretrain_use_cls_token: bool = True,
        out_feature: str = "last_feat",
        *,
        propagation: str | None = None,
        count: int | None = None,
        placement: str = "even",
        conv_block: str = "bottleneck",
        stem: str = "patchify",
        attention: str = "fused",
        stages: int = 1,
        pre_norm: bool = False,
        out_chans: int | None = None,
    ):
        super().__init__()
        choose("attention", attention, ATTENTION)
        for argument, value in (
            ("patch_size", patch_size),
            ("in_chans", in_chans),
            ("embed_dim", embed_dim),
            ("depth", depth),
            ("num_heads", num_heads),
            ("window_size", window_size),
        ):
            whole_number(argument, value, least=1)
        for argument, value in (("img_size", img_size), ("pretrain_img_size", pretrain_img_size)):
            whole_number(argument, value, least=patch_size)
        number("drop_path_rate", drop_path_rate, least=0, below=1)
        number("mlp_ratio", mlp_ratio, least=1 / embed_dim)
        builder("norm_layer", norm_layer)
        builder("act_layer", act_layer)
        if embed_dim % num_heads:
            raise ValueError(
                f"num_heads={num_heads} does not fit: it must divide embed_dim={embed_dim}"
            )
        if whole_number("stages", stages, least=1) > depth:
            raise ValueError(
                f"stages={stages} does not fit: an encoder of depth={depth} allows 1..{depth}"
            )
        if img_size % patch_size:
            raise ValueError(
                f"img_size={img_size} does not fit: a multiple of patch_size={patch_size} does"
            )
        self.img_size = img_size
        self.patch_embed = lookup(STEMS, "stem", stem)(patch_size, in_chans, embed_dim)
        self.pretrain_use_cls_token = pretrain_use_cls_token
        self.pos_embed = None
        if use_abs_pos:
            positions = (pretrain_img_size // patch_size) ** 2 + int(pretrain_use_cls_token)
            self.pos_embed = nn.Parameter(torch.zeros(1, positions, embed_dim))
            nn.init.trunc_normal_(self.pos_embed, std=0.02)

        self.spec = spec = EncoderSpec(embed_dim, depth, num_heads, window_size, conv_block)
        lookup(CONV_BLOCKS, "conv_block", conv_block)
        if window_block_indexes is None and residual_block_indexes is None:
            roles = _roles_of_words(spec, propagation or "global", count, placement)
        elif propagation is None and count is None and placement == "even":
            roles = _roles_of_indexes(spec, window_block_indexes, residual_block_indexes)
        else:
            raise ValueError(
                f"propagation={propagation!r}, count={count}, placement={placement!r} contradict "
                "window_block_indexes / residual_block_indexes: give the words or the indexes"
            )

        if pre_norm:
            self.norm_pre = norm_layer(embed_dim)
        grid = (img_size // patch_size, img_size // patch_size)
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                partition,
                grid,
                residual,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                drop_path=drop_path_rate * i / max(depth - 1, 1),
                norm_layer=norm_layer,
                act_layer=act_layer,
                use_rel_pos=use_rel_pos,
                rel_pos_zero_init=rel_pos_zero_init,
                attention=attention,
            )
            for i, (partition, residual) in enumerate(roles)
        )
        self.use_act_checkpoint = use_act_checkpoint
        self._out_features = [*(f"stage{i}_feat" for i in range(1, stages)), out_feature]
        self._out_feature_channels = dict.fromkeys(self._out_features, embed_dim)
        if out_chans is not None:
            self.neck = _sam_neck(embed_dim, whole_number("out_chans", out_chans, least=1))
            self._out_feature_channels[out_feature] = out_chans
        self._out_feature_strides = dict.fromkeys(self._out_features, patch_size)
        ends = propagation_blocks(depth, stages, "even")
        self._feature_of_block = dict(zip(ends, self._out_features, strict=True))
        self.apply(_init_weights)

    @property
    def plan(self) -> tuple[str, ...]:
        """What each block does, first to last, e.g. ("window", "global", ...)."""
        return tuple(block.word for block in self.blocks)

    def tokens(self, x: Tensor) -> Tensor:
        """What the first block reads: (B, 3, H, W) -> (B, ceil(H / patch), ceil(W / patch), C), the
        stem's tokens with their absolute positions."""
        x_BHWC = self.patch_embed(x)
        if self.pos_embed is not None:
            x_BHWC = x_BHWC + absolute_positions(
                self.pos_embed, self.pretrain_use_cls_token, tuple(x_BHWC.shape[1:3])
            )
        x_BHWC = x_BHWC.contiguous()  # stems put channels first in memory
        return self.norm_pre(x_BHWC) if hasattr(self, "norm_pre") else x_BHWC

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> {"last_feat": (B, embed_dim, ceil(H / patch), ceil(W / patch))}, with
        `out_chans` channels behind SAM's neck; the maps of earlier `stages` come first."""
        x_BHWC = self.tokens(x)
        features = {}
        for i, block in enumerate(self.blocks):
            if self.use_act_checkpoint and self.training:
                x_BHWC = checkpoint(block, x_BHWC, use_reentrant=False)
            else:
                x_BHWC = block(x_BHWC)
            if i in self._feature_of_block:
                features[self._feature_of_block[i]] = x_BHWC.permute(0, 3, 1, 2)
        if hasattr(self, "neck"):
            features[self._out_features[-1]] = self.neck(features[self._out_features[-1]])
        return features


def _sam_neck(embed_dim: int, out_chans: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(embed_dim, out_chans, 1, bias=False),
        LayerNorm2d(out_chans),
        nn.Conv2d(out_chans, out_chans, 3, padding=1, bias=False),
        LayerNorm2d(out_chans),
    )


Role = tuple[Partition, nn.Module | None]  # of a block: its partition, its residual module


def _roles_of_words(
    spec: EncoderSpec, propagation: str, count: int | None, placement: str
) -> list[Role]:
    strategy = lookup(PROPAGATIONS, "propagation", propagation)(spec)
    if count is None:
        count = strategy.default_count()
    elif propagation == "none" and count:
        raise ValueError(f"count={count} does not fit propagation='none': leave it out, or 0")
    propagating = propagation_blocks(spec.depth, count, placement)
    return [
        (strategy.partition(), strategy.residual())
        if i in propagating
        else (Windows(spec.window_size), None)
        for i in range(spec.depth)
    ]


def _roles_of_indexes(
    spec: EncoderSpec, windowed: Sequence[int] | None, residual: Sequence[int] | None
) -> list[Role]:
    conv_block = lookup(CONV_BLOCKS, "conv_block", spec.conv_block)
    windowed, residual = windowed or (), residual or ()
    for argument, indexes in (
        ("window_block_indexes", windowed),
        ("residual_block_indexes", residual),
    ):
        if not isinstance(indexes, Iterable) or not set(indexes) <= set(range(spec.depth)):
            raise ValueError(
                f"{argument}={indexes!r} does not fit: indexes in 0..{spec.depth - 1} do"
            )
    return [
        (
            Windows(spec.window_size) if i in windowed else Partition(),
            conv_block(spec.dim) if i in residual else None,
        )
        for i in range(spec.depth)
    ]


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
