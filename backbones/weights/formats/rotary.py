"""Encoders with rotary positions: DINOv3's, EVA-02's and Perception Encoder's.

What a token turns by is computed, and leaves no tensor that is loaded: it is a setting, `rope`, and
only an encoder that turns likewise loads such a file.
"""

import math
import re

import torch
from torch import Tensor

from ...partition import Partition
from ...rope import Rope
from ..contents import FORMATS, Contents, Format, State, WeightsError, square_grid
from .clip import OpenClip
from .detectron2 import Detectron2
from .shared import fold_layer_scale, gated, is_dinov3, is_eva02, is_pe, unbiased_stem
from .transformers import HuggingFace, rotary_base

TABLES = "tables of rotary positions: computed for each size"
TAIL = "norm behind the last block"
_NET = "backbone.net."  # in front of an encoder in a detector


@FORMATS.register("dinov3")
class Dinov3(Format):
    """facebookresearch/dinov3 (arXiv:2508.10104), timm's `vit_*_dinov3*` and `vit_*_lingbot`."""

    title = "DINOv3, timm vit_*_dinov3*"
    drop = {
        r"^cls_token$": "cls token",
        r"^(reg_token|storage_tokens)$": "registers",
        r"^mask_token$": "mask token",
        r"^rope_embed\.periods$": TABLES,
        r"\.attn\.qkv\.bias_mask$": "mask of k's bias: it has none here",
        r"^(norm|cls_norm|local_cls_norm|fc_norm)\.": TAIL,
        r"^(dino_head|ibot_head)\.": "head of self-distillation",
        r"^head\.": "classifier's head",
    }
    registers = r"^(reg_token|storage_tokens)$"
    rename = ((r"\.gamma_([12])$", r".ls\1.gamma"), (r"\.mlp\.fc1_g\.", ".mlp.w1."))
    settings = {"norm_eps": 1e-5, "rope": dict(unit="side")}

    def recognises(self, state: State) -> bool:
        return is_dinov3(state)

    def convert(self, state: State) -> Contents:
        masked = dict(state)
        for key, mask in state.items():
            bias = key.removesuffix("_mask")
            if bias == key or bias not in state:
                continue
            if mask.shape != state[bias].shape or not bool(((mask == 0) | (mask == 1)).all()):
                raise WeightsError(f"{key} is no mask of zeros and ones for {bias}")
            masked[bias] = torch.where(mask == 1, state[bias], 0)
        contents = super().convert(masked)
        dim = _width(contents)
        contents.settings["num_heads"] = {4096: 32}.get(dim, max(1, dim // 64))
        if (periods := state.get("rope_embed.periods")) is not None:
            pairs = torch.arange(len(periods.flatten()))
            expected = 100.0 ** (pairs / max(1, len(pairs)))
            close = torch.allclose(periods.flatten().float(), expected, rtol=0.01)  # bfloat16
            if not len(pairs) or not close or dim % (4 * len(pairs)):
                raise WeightsError("its rotary positions have other frequencies than DINOv3's")
            contents.settings["num_heads"] = dim // (4 * len(pairs))
            if not torch.allclose(periods.flatten().float(), expected, rtol=1e-5):
                contents.notes.append(
                    "rotary positions: the file's periods are rounded, here they are exact, as in "
                    "timm and transformers"
                )
        return contents

    def finish(self, contents: Contents) -> None:
        gated(contents)
        _without_k_bias(contents)
        fold_layer_scale(contents)


@FORMATS.register("hf-dinov3")
class HfDinov3(HuggingFace):
    """`transformers.DINOv3ViTModel`, `DINOv3ViTBackbone`."""

    title = "transformers DINOv3ViT*"
    models = ("dinov3_vit",)
    mark = r"^(model\.)?layer\.\d+\.layer_scale1\.lambda1$"
    drop = {
        r"\bembeddings\.cls_token$": "cls token",
        r"\bembeddings\.mask_token$": "mask token",
        r"\bembeddings\.register_tokens$": "register tokens",
        r"^norm\.": TAIL,
        r"^classifier\.": "classifier's head",
    }
    registers = r"\bembeddings\.register_tokens$"
    rename = (
        (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
        (r"^(model\.)?layer\.(\d+)\.", r"blocks.\2."),
        (r"\.attention\.o_proj\.", ".attn.proj."),
        (r"\.attention\.", ".attn."),
        (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
        (r"\.mlp\.gate_proj\.", ".mlp.w1."),
    )
    settings = {"norm_eps": 1e-5, "rope": dict(unit="side")}

    def configure(self, contents: Contents, config: dict) -> None:
        super().configure(contents, config)
        if config.get("use_gated_mlp") and config.get("hidden_act") != "silu":
            raise WeightsError("its config.json has a gated MLP of another activation than silu")
        if (base := rotary_base(config.get("rope_theta", 100.0))) != 100:
            contents.settings["rope"] = dict(unit="side", base=base)

    def finish(self, contents: Contents) -> None:
        has_gate = any(".mlp.w1." in key for key in contents.encoder)
        up, down = ("w2", "w3") if has_gate else ("fc1", "fc2")
        contents.encoder = {
            key.replace(".up_proj.", f".{up}.").replace(".down_proj.", f".{down}."): tensor
            for key, tensor in contents.encoder.items()
        }
        _joined(contents)
        _without_k_bias(contents)
        fold_layer_scale(contents)
        dim = _width(contents)
        contents.settings["num_heads"] = {4096: 32}.get(dim, max(1, dim // 64))


@FORMATS.register("eva02")
class Eva02(Format):
    """baaivision/EVA's EVA-02 (arXiv:2303.11331), pre-trained or as a classifier, and timm's
    `eva02_*`, but for EVA-02-CLIP's, whose attention has a norm inside."""

    title = "EVA-02, timm eva02_*"
    drop = {
        r"^cls_token$": "cls token",
        r"^mask_token$": "mask token",
        r"(^|\.)rope\.freqs_(cos|sin)$": TABLES,
        r"^(norm|fc_norm)\.": TAIL,
        r"^(head|lm_head)\.": "classifier's head",
    }
    rename = (
        (r"\.mlp\.ffn_ln\.", ".mlp.norm."),
        (r"\.mlp\.fc1_g\.", ".mlp.w1."),
        (r"\.mlp\.w12\.", ".mlp.fc1."),
    )
    needs = ("pos_embed",)
    settings = {"norm_eps": 1e-6, "rope": dict(unit="token", length=16)}

    def recognises(self, state: State) -> bool:
        return is_eva02(state)

    def convert(self, state: State) -> Contents:
        for key in ("rope.freqs_cos", "blocks.0.attn.rope.freqs_cos"):
            if key in state:
                check_table(state[key], Rope(16, unit="token"), "EVA-02")
        return super().convert(state)

    def finish(self, contents: Contents) -> None:
        gated(contents)
        _joined(contents)
        _without_k_bias(contents)
        contents.prefix = class_token(contents)
        contents.settings["num_heads"] = max(1, _width(contents) // 64)


@FORMATS.register("eva02-det")
class Eva02Det(Eva02):
    """EVA-02-Det: detectron2's ViTDet detectors on EVA-02, whose positions turn in windows. Which
    blocks have windows is seen from the length of their tables."""

    title = "EVA-02-Det"
    drop = Detectron2.drop | Eva02.drop | {r"^rope_(win|glb)\.": TABLES}
    new = Contents.new  # a detector has all that detection adds

    def recognises(self, state: State) -> bool:
        return is_eva02(_under(_NET, state))

    def convert(self, state: State) -> Contents:
        contents = super().convert(_under(_NET, state))
        _in_detector(contents, state, self.title)
        return contents


def _under(front: str, state: State) -> State:
    return {k.removeprefix(front): v for k, v in state.items() if k.startswith(front)}


@FORMATS.register("pe")
class PerceptionEncoder(Format):
    """facebookresearch/perception_models' PE-Core, PE-Lang and PE-Spatial (arXiv:2504.13181), and
    timm's `vit_pe_*`."""

    title = "Perception Encoder, timm vit_pe_*"
    drop = OpenClip.drop | {
        r"^cls_token$": "cls token",
        r"^attn_pool\.": "attention pooling",
        r"^norm\.": TAIL,
        r"^head\.": "projection to the space shared with text",
        r"(^|\.)rope\.(freqs|rope)": TABLES,
    }
    rename = (*OpenClip.rename, (r"\.gamma_([12])$", r".ls\1.gamma"))
    needs = ("pos_embed", "norm_pre.weight")
    settings = {"norm_eps": 1e-5}

    def recognises(self, state: State) -> bool:
        return is_pe(state)

    def convert(self, state: State) -> Contents:
        # Of a whole model, the same keys without "visual." are the text tower's.
        tower = {k: v for k, v in state.items() if k.startswith("visual.")} or state
        contents = super().convert(tower)
        for key, tensor in state.items():
            if key not in tower:
                contents.drop(key, tensor, "text tower, and scale of the contrastive loss")
        return contents

    def finish(self, contents: Contents) -> None:
        if "pos_embed" in contents.encoder and contents.encoder["pos_embed"].ndim == 2:
            contents.encoder["pos_embed"] = contents.encoder["pos_embed"][None]
        unbiased_stem(contents)
        fold_layer_scale(contents)
        contents.prefix = class_token(contents)
        dim, positions = _width(contents), contents.encoder.get("pos_embed")
        side = 1 if positions is None else math.isqrt(positions.shape[1] - contents.prefix)
        contents.settings["num_heads"] = {1536: 16}.get(dim, max(1, dim // 64))
        contents.settings["rope"] = dict(unit="token", axes="xy", length=max(1, side))


@FORMATS.register("pe-det")
class PerceptionEncoderDet(PerceptionEncoder):
    """PE's Mask R-CNNs (facebookresearch/perception_models, apps/detection): detectron2's ViTDet
    detectors on PE's keys. Windows are seen from tables, as EVA-02-Det's; positions are tiled."""

    title = "PE-Det"
    drop = Detectron2.drop | PerceptionEncoder.drop | {r"^rope_(win|glb)\.": TABLES}
    new = Contents.new  # a detector has all that detection adds

    def recognises(self, state: State) -> bool:
        return f"{_NET}rope_win.freqs_cos" in state and any(
            key.startswith(f"{_NET}transformer.resblocks.") for key in state
        )

    def convert(self, state: State) -> Contents:
        contents = super().convert(_under(_NET, state))
        contents.settings["positions_resize"] = "tile"
        _in_detector(contents, state, self.title, counted_from=1)
        return contents


def _in_detector(contents: Contents, state: State, whose: str, counted_from: int = 0) -> None:
    """What a detector has beside its encoder: tables, see `by_tables`, pyramid and heads.

    Args:
        state: of the detector, by the file's keys.

    Raises:
        WeightsError: as of `by_tables`.
    """
    tables = {
        int(m[1]): state[key]
        for key in state
        if (m := re.match(rf"{_NET}.*blocks\.(\d+)\.attn\.rope\.freqs_cos$", key))
    }
    by_tables(contents, tables, whose, counted_from)
    for key, tensor in state.items():
        if key.startswith(_NET):
            continue
        why = next((why for what, why in Detectron2.drop.items() if re.search(what, key)), "")
        if why:
            contents.drop(key, tensor, why)
        else:
            contents.detector[key] = tensor


def by_tables(
    contents: Contents, tables: dict[int, Tensor], whose: str, counted_from: int = 0
) -> None:
    """Windows and heads, which tables of each block's rotary positions show: windows have the
    shortest ones.

    Args:
        tables: by block, see `check_table`.
        counted_from: the place of a map's first token.

    Raises:
        WeightsError: tables are missing, or of other positions.
    """
    rope, depth = Rope(**contents.settings["rope"]), depth_of(contents)
    if not tables or sorted(tables) != list(range(depth)):
        raise WeightsError(f"has {len(tables)} tables of rotary positions for {depth} blocks")
    checked: dict[tuple, Tensor] = {}
    for table in tables.values():
        kind = table.shape, table.dtype
        if kind not in checked or not torch.equal(table, checked[kind]):
            check_table(table, rope, whose, counted_from)
            checked[kind] = table
    shortest = min(len(table) for table in checked.values())
    channels = tables[0].shape[1] * (1 + tables[0].is_complex())
    contents.settings |= dict(
        num_heads=max(1, _width(contents) // channels),
        window_size=math.isqrt(shortest),
        window_block_indexes=[i for i in range(depth) if len(tables[i]) == shortest],
        rope=contents.settings["rope"] | dict(coordinates="window"),
    )


def depth_of(contents: Contents) -> int:
    return len({k.split(".")[1] for k in contents.encoder if k.startswith("blocks.")})


def _width(contents: Contents) -> int:
    weight = contents.encoder.get("blocks.0.attn.qkv.weight")
    return weight.shape[1] if weight is not None and weight.ndim == 2 else 0


def class_token(contents: Contents) -> int:
    """Entries of the positions that are of no patch.

    Raises:
        WeightsError: the others are no square.
    """
    positions = contents.encoder.get("pos_embed")
    if positions is None or positions.ndim != 3:
        return 0
    fitting = [n for n in (0, 1) if square_grid(positions.shape[1] - n)]
    if not fitting:
        raise WeightsError(f"pos_embed is {tuple(positions.shape)}: no square of patches")
    return fitting[0]


def _joined(contents: Contents) -> None:
    """Weights of q, k and v in one; biases are `_without_k_bias`'s."""
    state = contents.encoder
    for key in [k for k in state if k.endswith(".attn.q_proj.weight")]:
        front = key.removesuffix("q_proj.weight")
        found = [state.pop(f"{front}{name}_proj.weight", None) for name in "qkv"]
        if any(x is None or x.ndim != 2 or x.shape != found[0].shape for x in found):
            raise WeightsError(f"has {key}, but no weights of k and v of its shape")
        state[f"{front}qkv.weight"] = torch.cat(found)
        for name in "qkv":
            if (bias := state.pop(f"{front}{name}_proj.bias", None)) is not None:
                state[f"{front}{name}_bias"] = bias


def _without_k_bias(contents: Contents) -> None:
    """Biases of q and v in one, zeros where there are none; k's, where it is zero, is left out."""
    state = contents.encoder
    for key in [k for k in state if k.endswith(".attn.qkv.weight")]:
        front = key.removesuffix("qkv.weight")
        q, k, v = (state.pop(f"{front}{name}_bias", None) for name in "qkv")
        whole = state.get(f"{front}qkv.bias")
        if whole is not None:
            if q is not None or v is not None or whole.shape != state[key].shape[:1]:
                raise WeightsError(f"{front}qkv.bias {tuple(whole.shape)} does not fit {key}")
            q, k, v = whole.chunk(3)
        elif q is None and v is None:
            q, v = (state[key].new_zeros(state[key].shape[1]) for _ in "qv")
            if key.startswith("blocks.0."):
                contents.notes.append("biases of q and v are zero: the file has none")
        if q is None or v is None or q.shape != v.shape or q.ndim != 1:
            raise WeightsError(f"{front}q_bias and v_bias go together, of one shape")
        biased = k is not None and bool((k != 0).any())
        state[f"{front}qkv.bias"] = torch.cat([q, k, v] if biased else [q, v])


def check_table(table: Tensor, rope: Rope, whose: str, counted_from: int = 0) -> None:
    """
    Args:
        table: of a square of N tokens and heads of D channels: cosines, (N, D), two neighbours
            alike; or cosines and sines as complex numbers, (N, D / 2).

    Raises:
        WeightsError: it is of other rotary positions than `rope`.
    """
    side = square_grid(table.shape[0]) if table.ndim == 2 else None
    channels = table.shape[1] * (1 + table.is_complex()) if side else 0
    if channels and channels % 4 == 0 and (table.is_floating_point() or table.is_complex()):
        cos, sin = rope.turn(Partition(), side, channels, table.real)
        if counted_from:  # turned on by the angles of a token's place, 1
            one = Rope(2, unit="token").turn(Partition(), (2, 2), channels, table.real)
            cos = cos * one[0][:, 1:, 1:] - sin * one[1][:, 1:, 1:]
        expected = torch.complex(cos, sin) if table.is_complex() else cos.repeat_interleave(2, -1)
        if torch.allclose(table.to(expected.dtype), expected.flatten(0, 2), atol=0.02):
            return
    raise WeightsError(f"its tables of rotary positions are others than {whose}'s")
