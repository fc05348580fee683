"""timm's `vit_*` and `samvit_*`, and the releases that have their keys: MAE, DeiT, DINO, DINOv2."""

import re

from ..contents import FORMATS, Contents, Format, State, WeightsError, square_grid
from .shared import fold_layer_scale, unbiased_stem

# Tokens beside the patches, in the order of their positions.
_TOKENS = ("cls_token", "dist_token", "reg_token", "register_tokens")

_MASK_TOKEN = r"^mask_token$"

# What `ViT` cannot compute, by pattern of its keys. Anything else unknown ends as "unexpected".
_NOT_VIT = {
    r"\.attn\.[qk]_norm\.": "norms of queries and keys",
    r"\.attn\.[qv]_bias$": "biases of q and v alone (BEiT, EVA)",
    r"\.(attn|mlp)\.(sub_)?norm\.": "norms inside attention or MLP",
    r"\.mlp\.(w\d+|fc1_[gx])\.": "gated MLPs (SwiGLU)",
    r"(^|\.)rope": "rotary positions",
    r"relative_position|rel_pos\.mlp\.": "biases by relative position",
    r"^patch_embed\.(?!proj\.(weight|bias)$)": "another stem than one convolution",
}


class _Timm(Format):
    drop = {
        r"^cls_token$": "cls token",
        r"^dist_token$": "distillation token",
        r"^(reg_token|register_tokens)$": "registers",
        _MASK_TOKEN: "mask token",
        r"^(fc_)?norm\.": "norm behind the last block",
        r"^(head|head_dist|pre_logits)\.": "classifier's head",
        r"^attn_pool\.": "attention pooling in front of the head",
    }
    registers = r"^(reg_token|register_tokens)$"
    rename = (
        # DINOv2 trains in chunks of blocks, numbered through: blocks.CHUNK.BLOCK.
        (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),
        (r"\.gamma_([12])$", r".ls\1.gamma"),  # LayerScale in DeiT III's own files
    )

    def finish(self, contents: Contents) -> None:
        state = contents.encoder
        for key in state:
            if what := next((w for p, w in _NOT_VIT.items() if re.search(p, key)), None):
                raise WeightsError(f"has {key}: {what}, which ViT does not compute")
        blocks = sorted({m[1] for k in state if (m := re.match(r"blocks\.(\d+)\.", k))}, key=int)
        for i in blocks:
            into, out_of = (_shape(state, f"blocks.{i}.mlp.fc{n}.weight") for n in (1, 2))
            if len(into) == len(out_of) == 2 and into[0] != out_of[1]:
                raise WeightsError(
                    f"blocks.{i}.mlp.fc1 makes {into[0]} channels, fc2 reads {out_of[1]}: gated "
                    "MLPs (SwiGLU), which ViT does not compute"
                )
        scales = [f"blocks.{i}.ls{n}.gamma" for i in blocks for n in (1, 2)]
        scaled = any(k in state for k in scales)
        if scaled and (absent := [k for k in scales if k not in state]):
            raise WeightsError(f"has no {absent[0]}, though other blocks have LayerScale")
        fold_layer_scale(contents)
        if "norm_pre.weight" in state:
            if "norm.weight" not in contents.dropped or "attn_pool.latent" in contents.dropped:
                raise WeightsError(
                    "has norm_pre as Perception Encoders (vit_pe_*) have it, whose rotary "
                    "positions ViT does not compute; a CLIP tower has norm too, and no attn_pool"
                )
            contents.settings |= {"norm_eps": 1e-5, "act_layer": None}  # as all CLIP towers
            unbiased_stem(contents)
        biased = any(k.endswith(".attn.qkv.bias") for k in state)
        if "fc_norm.weight" in contents.dropped and not biased and not scaled:
            raise WeightsError(
                "has fc_norm and no qkv.bias, as vit_base_patch16_rpn_224 has, whose norms stand "
                "behind attention and MLP, where ViT has none"
            )
        self.positions(contents)

    def positions(self, contents: Contents) -> None:
        """Say which entries of `pos_embed` belong to patches.

        Some models have positions for the cls token and the registers too, some (DINOv2) for the
        cls token, some (DeiT III) for patches only.
        """
        shape = _shape(contents.encoder, "pos_embed")
        if not shape:
            raise WeightsError("has no pos_embed: rotary positions, which ViT does not compute")
        if len(shape) != 3 or not shape[2]:
            raise WeightsError(f"pos_embed is {shape}, not (1, positions, channels)")
        tokens = {k: contents.dropped[k][1] // shape[2] for k in _TOKENS if k in contents.dropped}
        prefixes = {0, tokens.get("cls_token", 0), sum(tokens.values())}
        fitting = [n for n in prefixes if square_grid(shape[1] - n)]
        if len(fitting) != 1:
            raise WeightsError(
                f"pos_embed has {shape[1]} entries, of which {sum(tokens.values())} or fewer "
                "belong to tokens beside the patches: the rest must be one square of patches"
            )
        contents.prefix = fitting[0]
        if contents.registers and contents.prefix == sum(tokens.values()):
            key, registers_1RC = contents.registers
            first = contents.prefix - registers_1RC.shape[1]
            positions_1RC = contents.encoder["pos_embed"][:, first : contents.prefix]
            if positions_1RC.shape == registers_1RC.shape:
                contents.registers = key, registers_1RC + positions_1RC


@FORMATS.register("timm")
class Timm(_Timm):
    """`timm.models.VisionTransformer` (arXiv:2010.11929), and what has its keys: MAE's encoders
    (facebookresearch/mae, `mae_pretrain_vit_*.pth`), DeiT, DeiT III, DINO and DINOv2.

    LayerScale is folded into the linear map in front of it. A file does not show the activation
    (GELU here; CLIP's may be QuickGELU, SigLIP 2's tanh GELU) nor the number of heads; nor the
    rotary positions of timm's `vit_*_rope_ape_*`, which must not be loaded.
    """

    title = "timm vit_* and deit*; MAE's mae_pretrain_vit_*.pth; DeiT, DINO, DINOv2"
    mark = r"^blocks\.(\d+\.)+attn\.qkv\.weight$"
    without = r"^decoder_|^neck\.|\.attn\.pool_"

    def recognises(self, state: State) -> bool:
        # A plain encoder in detectron2's keys has none of these; a mask token it may have.
        left_out = [pattern for pattern in self.drop if pattern != _MASK_TOKEN]
        own = "|".join([*left_out, r"\.ls[12]\.gamma$", r"\.gamma_[12]$"])
        return super().recognises(state) and any(re.search(own, k) for k in state)


@FORMATS.register("mae")
class MAE(_Timm):
    """facebookresearch/mae with its decoder (arXiv:2111.06377): `mae_visualize_vit_*.pth`, and the
    checkpoints that its training writes. MAE's encoders alone have timm's keys: "timm"."""

    title = "facebookresearch/mae with decoder, mae_visualize_vit_*.pth"
    mark = r"^decoder_blocks\."
    drop = _Timm.drop | {r"^decoder_": "MAE's decoder"}


@FORMATS.register("samvit")
class SamViT(_Timm):
    """timm's `samvit_*` (`timm.models.VisionTransformerSAM`): SAM's encoder, neck and relative
    positions included. timm computes the blocks' norms with epsilon 1e-5, SAM with 1e-6."""

    title = "timm samvit_*"
    drop = _Timm.drop | {r"^neck\.(weight|bias)$": "norm behind the last block"}
    new = Contents.new  # relative positions and the neck are all there
    settings = {"norm_eps": 1e-5}

    def recognises(self, state: State) -> bool:
        # A plain encoder with SAM's neck, in detectron2's keys, has positions as (1, P, C).
        neck = any(k.startswith("neck.") for k in state)
        grid = len(_shape(state, "pos_embed")) == 4
        return neck and "blocks.0.mlp.fc1.weight" in state and (grid or "neck.weight" in state)

    def positions(self, contents: Contents) -> None:
        state = contents.encoder
        if not any(k.endswith(".attn.rel_pos_h") for k in state):
            raise WeightsError("has no relative positions, as SAM's encoder has")
        if "pos_embed" in state:
            shape = _shape(state, "pos_embed")
            if len(shape) != 4:
                raise WeightsError(f"pos_embed is {shape}, not (1, rows, columns, channels)")
            contents.grid = shape[1:3]
            state["pos_embed"] = state["pos_embed"].flatten(1, 2)


def _shape(state: State, key: str) -> tuple[int, ...]:
    return tuple(state[key].shape) if key in state else ()
