"""timm's `vit_*` and `samvit_*`, and the releases that have their keys: MAE, DeiT, DINO, iBOT,
DINOv2, I-JEPA, EVA-01."""

import math
import re

from ...activations import QuickGELU, TanhGELU
from ..contents import FORMATS, Contents, Format, State, WeightsError, square_grid
from .detectron2 import VIT_KEYS
from .shared import (
    fold_layer_scale,
    gated,
    is_dinov3,
    is_eva02,
    is_pe,
    join_biases,
    map_positions,
    unbiased_stem,
)

# Tokens beside the patches, in the order of their positions.
_TOKENS = ("cls_token", "dist_token", "reg_token", "register_tokens")

_MASK_TOKEN = r"^(mask_token|masked_embed)$"
# What self-distillation has beside the encoder, in the teacher of DINO, iBOT and DINOv2.
_HEADS = r"^((dino|ibot)_head|head)\."

# What is of no file that these formats read, by pattern of its keys, though `ViT` may compute it.
# Anything else unknown ends as "unexpected".
_NOT_VIT = {
    r"\.attn\.[qk]_norm\.": "norms of queries and keys",
    r"\.(attn|mlp)\.(sub_)?norm\.": "norms inside attention or MLP",
    r"\.mlp\.(w\d+|fc1_[gx])\.": "gated MLPs (SwiGLU)",
    r"(^|\.)rope": "rotary positions",
    r"relative_position|rel_pos\.mlp\.": "biases by relative position",
    r"^patch_embed\.(?!proj\.(weight|bias)$)": "another stem than one convolution",
}


_DOUBT = (
    "has LayerScale as gamma_1: so have DeiT III's own files, and models whose rotary positions "
    "leave no tensor (timm's vit_*_rope_ape_*, naver-ai/rope-vit). Take timm's deit3_*; or, where "
    "it is DeiT III, put it as pytorch_model.bin beside a config.json of "
    '{"architecture": "deit3_..."} and name the folder'
)


class _Timm(Format):
    drop = {
        r"^cls_token$": "cls token",
        r"^dist_token$": "distillation token",
        r"^(reg_token|register_tokens)$": "registers",
        _MASK_TOKEN: "mask token",
        r"^((dino|ibot)_head\.|head\.(mlp|last_layer))": "head of self-distillation",
        r"^(fc_)?norm\.": "norm behind the last block",
        r"^(head|head_dist|pre_logits|lm_head)\.": "classifier's head",
        r"^attn_pool\.": "attention pooling in front of the head",
    }
    registers = r"^(reg_token|register_tokens)$"
    rename = (
        # DINOv2 trains in chunks of blocks, numbered through: blocks.CHUNK.BLOCK.
        (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),
        (r"\.gamma_([12])$", r".ls\1.gamma"),  # LayerScale in DeiT III's own files
    )

    def convert(self, state: State) -> Contents:
        state = _bare(state)
        if any(".mlp.w12." in key for key in state):  # DINOv2's own giant: timm's fc1 and fc2
            for theirs, timms in ((".mlp.w12.", ".mlp.fc1."), (".mlp.w3.", ".mlp.fc2.")):
                state = {key.replace(theirs, timms): tensor for key, tensor in state.items()}
        contents = super().convert(state)
        if any(re.search(r"\.gamma_[12]$", key) for key in state):
            contents.doubt = _DOUBT
        return contents

    def configure(self, contents: Contents, config: dict) -> None:
        """By the architecture that timm's config.json names."""
        name = str(config.get("architecture", ""))
        if re.search(r"_(rope|pe|dinov3)(_|$)", name):
            raise WeightsError(
                f"config.json says it is {name[:80]!a}, whose rotary positions are not read"
            )
        if name.startswith("deit3_"):
            contents.doubt = ""
        if "_quickgelu_" in name:
            contents.settings["act_layer"] = QuickGELU

    def finish(self, contents: Contents) -> None:
        state = contents.encoder
        joined = any(key.endswith(".attn.q_bias") for key in state)
        join_biases(contents)  # EVA-01
        if joined and _shape(state, "blocks.0.attn.proj.weight")[:1] == (1792,):
            raise WeightsError(
                "has biases of q and v and 1792 channels, as EVA02-CLIP-E has (timm's "
                "eva02_enormous_*), whose norms stand behind attention and MLP, where ViT has none"
            )
        for key in state:
            if what := next((w for p, w in _NOT_VIT.items() if re.search(p, key)), None):
                raise WeightsError(f"has {key}: {what}, in keys that are not read")
        if "cls_token" in contents.dropped and "blocks.0.ls1.gamma" in state:
            gated(contents)  # DINOv2's giant: of these no other has one
        blocks = sorted({m[1] for k in state if (m := re.match(r"blocks\.(\d+)\.", k))}, key=int)
        for i in blocks:
            into, out_of = (_shape(state, f"blocks.{i}.mlp.fc{n}.weight") for n in (1, 2))
            if len(into) == len(out_of) == 2 and into[0] != out_of[1]:
                raise WeightsError(
                    f"blocks.{i}.mlp.fc1 makes {into[0]} channels, fc2 reads {out_of[1]}: gated "
                    "MLPs (SwiGLU), in keys that are not read"
                )
        scales = [f"blocks.{i}.ls{n}.gamma" for i in blocks for n in (1, 2)]
        scaled = any(k in state for k in scales)
        if scaled and (absent := [k for k in scales if k not in state]):
            raise WeightsError(f"has no {absent[0]}, though other blocks have LayerScale")
        fold_layer_scale(contents)
        if "norm_pre.weight" in state:
            if "norm.weight" not in contents.dropped or "attn_pool.latent" in contents.dropped:
                raise WeightsError(
                    "has norm_pre, but neither the keys of a CLIP tower, which has norm and no "
                    "attn_pool, nor those of a Perception Encoder (vit_pe_*)"
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
        self.activation(contents)

    def activation(self, contents: Contents) -> None:
        """Say that it is not known, or that it is a tanh GELU, of what may be SigLIP: timm has some
        of its sizes with it, others with GELU. One that is not has its tensors and other heads."""
        stem = _shape(contents.encoder, "patch_embed.proj.weight")
        if len(stem) != 4 or "norm_pre.weight" in contents.encoder:
            return
        dim, _, patch, _ = stem
        side = math.isqrt(_shape(contents.encoder, "pos_embed")[1] - contents.prefix)
        pooled = "attn_pool.latent" in contents.dropped
        others = {*_TOKENS, "fc_norm.weight", "blocks.0.ls1.gamma"} & contents.dropped.keys()
        averaged = dim in (768, 1024, 1152, 1536) and not others
        if pooled or averaged:
            tanh = dim == 1536 or (dim, patch) == (1152, 16)
            tanh |= pooled and ((dim, patch) == (768, 32) or (dim, side) == (1024, 32))
            contents.settings["act_layer"] = TanhGELU if tanh else None
        if averaged and dim == 768:
            contents.settings["num_heads"] = None  # 12 of SigLIP's, 16 of vit_base_patch16_gap_224

    def positions(self, contents: Contents) -> None:
        """Say which entries of `pos_embed` belong to patches.

        Some models have positions for the cls token and the registers too, some (DINOv2) for the
        cls token, some (DeiT III) for patches only.
        """
        shape = _shape(contents.encoder, "pos_embed")
        if not shape:
            raise WeightsError("has no pos_embed: rotary positions, in keys that are not read")
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


def _bare(state: State) -> State:
    """A teacher's encoder and heads by timm's keys: its encoder's have "backbone." in front."""
    around = [key for key in state if not key.startswith("backbone.")]
    if "backbone.cls_token" not in state or not all(re.match(_HEADS, key) for key in around):
        return state
    return {key.removeprefix("backbone."): tensor for key, tensor in state.items()}


@FORMATS.register("timm")
class Timm(_Timm):
    """`timm.models.VisionTransformer` (arXiv:2010.11929), and what has its keys: MAE's encoders
    (facebookresearch/mae, `mae_pretrain_vit_*.pth`), DeiT, I-JEPA's target encoders, EVA-01, and
    DINO's, iBOT's and DINOv2's encoders, alone or as a training's teacher.

    LayerScale is folded into the linear map in front of it. A file does not show the number of
    heads, nor, for CLIP's and SigLIP's, the activation. LayerScale under the names of DeiT III's
    own files (`gamma_1`) is also that of models with rotary positions, which leave no tensor: such
    a file is refused unless a config.json says that it is `deit3_*`.
    """

    title = "timm vit_*, deit* and eva_giant_*; MAE, DeiT, DINO, iBOT, DINOv2, I-JEPA, EVA-01"
    mark = r"^blocks\.(\d+\.)+attn\.qkv\.weight$"
    without = r"^decoder_|^neck\.|\.attn\.pool_|^ln_pre\."

    def recognises(self, state: State) -> bool:
        if is_dinov3(state) or is_eva02(state) or is_pe(state) or all(map(VIT_KEYS.match, state)):
            return False
        # A plain encoder in detectron2's keys has none of these; a mask token it may have.
        left_out = [pattern for pattern in self.drop if pattern != _MASK_TOKEN]
        own = "|".join([*left_out, r"\.ls[12]\.gamma$", r"\.gamma_[12]$"])
        state = _bare(state)
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
        map_positions(contents)

    def activation(self, contents: Contents) -> None:
        """GELU."""


def _shape(state: State, key: str) -> tuple[int, ...]:
    return tuple(state[key].shape) if key in state else ()
