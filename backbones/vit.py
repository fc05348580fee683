"""The plain ViT encoder of ViTDet (arXiv:2203.16527), with every propagation strategy.

Constructor words are those of detectron2's `ViT` where it has them; from words to the parts of
an `Encoder`.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from .arguments import builder, number, whole_number
from .attention import ATTENTION
from .block import Block, BlockParts
from .encoder import Encoder
from .initial import init_linear
from .norms import LayerNorm2d
from .partition import Partition
from .positions import RESIZE, read_positions
from .propagation import EncoderSpec, roles_of_indexes, roles_of_words, strategy
from .registries import CONV_BLOCKS, MLPS, STEMS, accepted, choose, lookup, read_word
from .rope import Rope


class ViT(Encoder):
    """Plain ViT encoder: windowed blocks, some of which propagate across windows.

    Args:
        img_size: image side in pixels; sizes relative-position tables of global blocks.
        patch_size: pixels along a patch.
        in_chans: image channels.
        embed_dim: channels of a token.
        depth: blocks.
        num_heads: heads of each block.
        mlp_ratio: hidden channels of the MLPs over `embed_dim`.
        qkv_bias: whether q, k and v have a bias; "qv": q and v (EVA-02, DINOv3).
        drop_path_rate: stochastic depth of the last block; grows linearly from 0 at the first.
        norm_layer: builds a norm from a number of channels.
        act_layer: builds the MLPs' activation, which treats each token alone.
        use_abs_pos: False: as `positions="none"`.
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
            "conv", "shifted" or your own. None means "global", the paper's default. It may set
            arguments: "conv(conv_block=basic)".
        count: how many blocks propagate, "all" of them, or None: the strategy's own, see
            `default_count`.
        placement: which ones, see `propagation_blocks`: "even", "first" or "last".
        conv_block: for a propagation with this argument, as "conv", a word of `CONV_BLOCKS`:
            "naive", "basic" or "bottleneck".
        stem: image to tokens, a word of `STEMS`: "patchify" or "conv".
        attention: the kernel, "fused", "reference" or "triton": one function, see `Attention`.
        stages: stages of equal length (as equal as `depth` allows, see "even" placement). The maps
            at the ends of all but the last are outputs too: "stage1_feat", "stage2_feat", ...
        pre_norm: one more norm in front of the first block (CLIP, arXiv:2103.00020).
        out_chans: channels of SAM's neck behind the last block: a 1x1 and a 3x3 conv, each with a
            norm (arXiv:2304.02643). None: no neck.
        positions: absolute positions added to the tokens: "learned"; "sincos2d", MAE's fixed sines
            and cosines (arXiv:2111.06377), which are a parameter without gradient; "none". Or
            rotary ones, "rope", see `Rope` for its arguments. Or both: "learned+rope(unit=token)".
        positions_resize: how absolute ones fit a map of another size: "bicubic", or "tile":
            repeated (Perception Encoder, SAM 3; arXiv:2311.05613).
        mlp: a word of `MLPS`: "mlp", "swiglu", or "swiglu(hidden=2048, norm=true)", where hidden
            channels are in place of `mlp_ratio` and normed (EVA-02).
        layer_scale: value that a learned factor of each channel behind attention and MLP starts
            from (arXiv:2103.17239); None: no such factors.
        qk_norm: norm the channels of each head's q and k, before they turn.
        mask_ratio: share of the tokens that training leaves out, another random one in each forward
            pass, see `draw_kept`; behind the last block they are a learned `mask_token`, and conv
            blocks read zeros there. As InsightFace's ViT for faces (arcface_torch), which draws for
            each image by itself and without regard to windows, as it has none.
        registers: learned tokens beside the map (arXiv:2309.16588), without position, dropped
            behind the last block. They take part in global attention; in other blocks they see each
            other only, see `TokenSequence`.

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
        qkv_bias: bool | str = True,
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
        count: int | str | None = None,
        placement: str = "even",
        conv_block: str = "bottleneck",
        stem: str = "patchify",
        attention: str = "fused",
        stages: int = 1,
        pre_norm: bool = False,
        out_chans: int | None = None,
        positions: str = "learned",
        positions_resize: str = "bicubic",
        mlp: str = "mlp",
        layer_scale: float | None = None,
        qk_norm: bool = False,
        mask_ratio: float = 0.0,
        registers: int = 0,
    ):
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
        number("mask_ratio", mask_ratio, least=0, below=1)
        whole_number("registers", registers, least=0)
        choose("qkv_bias", qkv_bias, (True, False, "qv"))
        choose("positions_resize", positions_resize, RESIZE)
        if layer_scale is not None:
            number("layer_scale", layer_scale, least=0)
        if out_chans is not None:
            whole_number("out_chans", out_chans, least=1)
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

        build_stem = lookup(STEMS, "stem", stem)
        patch_embed = build_stem(patch_size, in_chans, embed_dim)
        side = pretrain_img_size // patch_size
        absolute, rope = read_positions(positions, side, pretrain_use_cls_token, embed_dim)
        if not use_abs_pos and absolute is not None and positions != "learned":
            raise ValueError(
                f"positions={positions!r} contradicts use_abs_pos=False: give one of the two"
            )
        pos_embed = absolute if use_abs_pos else None
        spec = EncoderSpec(embed_dim, depth, num_heads, window_size)
        convs = lookup(CONV_BLOCKS, "conv_block", conv_block)
        if window_block_indexes is None and residual_block_indexes is None:
            chosen = strategy(propagation or "global", spec, conv_block=conv_block)
            if propagation == "none" and count:
                raise ValueError(
                    f"count={count!r} does not fit propagation='none': leave it out, or 0"
                )
            roles = roles_of_words(chosen, count, placement)
        elif propagation is None and count is None and placement == "even":
            roles = roles_of_indexes(spec, window_block_indexes, residual_block_indexes, convs)
        else:
            raise ValueError(
                f"propagation={propagation!r}, count={count}, placement={placement!r} contradict "
                "window_block_indexes / residual_block_indexes: give the words or the indexes"
            )
        partitions = [partition for partition, _ in roles]
        norm_pre = norm_layer(embed_dim) if pre_norm else None
        build_mlp, own = read_word(MLPS, "mlp", mlp)
        given = accepted(build_mlp, act_layer=act_layer, norm_layer=norm_layer)
        parts = BlockParts(
            dim=embed_dim,
            num_heads=num_heads,
            grid=(img_size // patch_size, img_size // patch_size),
            mlp=partial(build_mlp, **{"hidden": int(embed_dim * mlp_ratio), **own}, **given),
            norm_layer=norm_layer,
            qkv_bias=qkv_bias,
            use_rel_pos=use_rel_pos,
            rel_pos_zero_init=rel_pos_zero_init,
            attention=attention,
            rope=rope,
            qk_norm=qk_norm,
            layer_scale=layer_scale,
        )
        blocks = [
            parts.block(partition, residual, drop_path_rate * i / max(depth - 1, 1))
            for i, (partition, residual) in enumerate(roles)
        ]
        if rope is not None:
            _check_rope(parts, rope, partitions)
        if positions_resize == "tile":
            _check_tile(pos_embed, side, window_size)
        _check_inner_norms(blocks[0])
        _check_sequence(mask_ratio, registers, window_size, use_rel_pos, partitions)
        super().__init__(
            spec,
            img_size,
            patch_embed,
            blocks,
            pos_embed=pos_embed,
            pretrain_use_cls_token=pretrain_use_cls_token,
            positions_resize=positions_resize,
            norm_pre=norm_pre,
            neck=None if out_chans is None else _sam_neck(embed_dim, out_chans),
            out_chans=out_chans,
            stages=stages,
            out_feature=out_feature,
            mask_ratio=mask_ratio,
            registers=registers,
            use_act_checkpoint=use_act_checkpoint,
        )
        for linear in itertools.chain.from_iterable(block.linears for block in self.blocks):
            init_linear(linear)


def _check_rope(parts: BlockParts, rope: Rope, partitions: Sequence[Partition]) -> None:
    if (channels := parts.dim // parts.num_heads) % 4:
        raise ValueError(
            f"positions='rope' does not fit heads of {channels} channels (embed_dim over "
            "num_heads): a multiple of 4, two pairs for rows and columns, does"
        )
    if parts.use_rel_pos:
        raise ValueError(
            "positions='rope' does not fit use_rel_pos=True: give one of the two, as "
            "use_rel_pos=False"
        )
    if rope.coordinates == "window" and all(partition.is_global for partition in partitions):
        raise ValueError(
            "positions='rope(coordinates=window)' does not fit: no block has windows; "
            "coordinates=map does"
        )


def _check_tile(pos_embed: nn.Parameter | None, side: int, window: int) -> None:
    if pos_embed is None:
        raise ValueError("positions_resize='tile' has no effect: there are no absolute ones")
    if side % window and window % side:
        raise ValueError(
            f"positions_resize='tile' does not fit: window_size={window} and the {side} "
            f"positions along a side (pretrain_img_size over patch_size) do not divide"
        )


def _check_inner_norms(block: Block) -> None:
    """Inside attention and MLP a norm must treat each token alone: padding is normed by itself
    there, and a map a few rows at a time."""
    for word, norm in (
        ("qk_norm=True", block.attn.q_norm),
        ("mlp='swiglu(norm=true)'", getattr(block.mlp, "norm", None)),
    ):
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"{word} does not fit batch norms, whose statistics would be of padding too; "
                "block_norm='layer' does"
            )


def _check_sequence(
    mask_ratio: float,
    registers: int,
    window: int,
    use_rel_pos: bool,
    partitions: Sequence[Partition],
) -> None:
    """Whether tokens can be left out of the map and put beside it."""
    for argument, value in (("mask_ratio", mask_ratio), ("registers", registers)):
        if value and use_rel_pos:
            raise ValueError(
                f"{argument}={value} does not fit use_rel_pos=True: relative positions are those "
                "of a whole map with no token beside it"
            )
    if mask_ratio and not 0 < round(mask_ratio * window**2) < window**2:
        raise ValueError(
            f"mask_ratio={mask_ratio} does not fit: of the {window**2} tokens of a window "
            "(window_size) it leaves out none, or all"
        )
    if registers and not any(partition.is_global for partition in partitions):
        raise ValueError(f"registers={registers} does not fit: no block is global, to read them")


def _sam_neck(embed_dim: int, out_chans: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(embed_dim, out_chans, 1, bias=False),
        LayerNorm2d(out_chans),
        nn.Conv2d(out_chans, out_chans, 3, padding=1, bias=False),
        LayerNorm2d(out_chans),
    )
