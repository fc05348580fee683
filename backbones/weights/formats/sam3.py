"""SAM 3's image encoder (arXiv:2511.16719), in its authors' files and in transformers'.

It is ViTDet's encoder with a norm in front of the blocks, tiled positions, and rotary ones in
windows. Those of the map are scaled so that a side is as many tokens as a window's.
"""

import math
import re

from torch import Tensor

from ..contents import FORMATS, Contents, Format, State, WeightsError
from .rotary import TABLES, TAIL, by_tables, class_token, depth_of
from .shared import fold_layer_scale, unbiased_stem
from .transformers import CLASSIFIER_BLOCKS, HuggingFace, encoder_config, is_indexes, rotary_base

_WINDOW, _GLOBAL = 24, [7, 15, 23, 31]  # of the release's 32 blocks
_BASE = 10_000


class _Encoder(Format):
    """The encoder, alone or in a whole model.

    Class attributes:
        shown: names of tensors, behind one front, by which it is recognised.
    """

    shown: tuple[str, ...]
    needs = ("pos_embed", "norm_pre.weight")
    new = Contents.new  # a detection encoder has all of it

    def recognises(self, state: State) -> bool:
        return bool(self._fronts(state))

    def _fronts(self, state: State) -> list[str]:
        first, *others = self.shown
        fronts = [k.removesuffix(first) for k in state if re.search(rf"(^|\.){first}$", k)]
        return [f for f in fronts if all(f + name in state for name in others)]

    def convert(self, state: State) -> Contents:
        front, *others = self._fronts(state) or [""]
        if others:
            raise WeightsError(
                f"has image encoders in {front} and in {others[0]}: save one of them"
            )
        own = {k.removeprefix(front): v for k, v in state.items() if k.startswith(front)}
        contents = super().convert(own)
        for key, tensor in state.items():
            if not key.startswith(front):
                contents.drop(key, tensor, "what SAM 3 has around its image encoder")
        self.turn(contents, own)
        return contents

    def turn(self, contents: Contents, own: State) -> None:
        """Windows and rotary positions, as far as tensors show them: those of the release.

        Raises:
            WeightsError: the file is of other rotary positions.
        """
        _say(contents, _WINDOW, _GLOBAL, _BASE)

    def finish(self, contents: Contents) -> None:
        unbiased_stem(contents)


def _say(contents: Contents, window: int, whole: list[int], base: float) -> None:
    """Windows of so many tokens along a side in all blocks but `whole`."""
    windowed = [i for i in range(depth_of(contents)) if i not in whole]
    rope = dict(unit="token", axes="xy", length=window)
    if windowed:
        rope["coordinates"] = "window"
    if base != _BASE:
        rope["base"] = base
    contents.settings |= dict(window_size=window, window_block_indexes=windowed, rope=rope)


@FORMATS.register("sam3")
class Sam3(_Encoder):
    """facebookresearch/sam3: a whole model, its backbone, or its `trunk` alone. Tables of rotary
    positions show windows and heads; without them, windows are the release's."""

    title = "SAM 3"
    shown = ("blocks.0.attn.qkv.weight", "ln_pre.weight", "patch_embed.proj.weight")
    drop = {r"\.attn\.freqs_cis(_real|_imag)?$": TABLES, r"^ln_post\.": TAIL}
    rename = ((r"^ln_pre\.", "norm_pre."),)
    settings = {"norm_eps": 1e-5, "positions_resize": "tile"}

    def turn(self, contents: Contents, own: State) -> None:
        super().turn(contents, own)
        tables: dict[int, Tensor] = {
            int(m[1]): own[key]
            for key in own
            if (m := re.match(r"blocks\.(\d+)\.attn\.freqs_cis$", key))
        }
        if any(why == TABLES for why, _ in contents.dropped.values()):
            window = math.isqrt(min((t.shape[0] for t in tables.values() if t.ndim), default=1))
            contents.settings["rope"] |= dict(length=max(1, window))
            by_tables(contents, tables, self.title)

    def finish(self, contents: Contents) -> None:
        super().finish(contents)
        fold_layer_scale(contents)
        contents.prefix = class_token(contents)


@FORMATS.register("hf-sam3")
class HfSam3(_Encoder, HuggingFace):
    """`transformers.Sam3ViTModel`, alone and in `Sam3VisionModel`, `Sam3Model`, `Sam3VideoModel`,
    `Sam3Tracker*`, `Sam3LiteText*`. Its norms' epsilon is 1e-6; their authors' is 1e-5."""

    title = "transformers Sam3*"
    models = ("sam3_vit_model",)
    shown = (
        "layers.0.attention.q_proj.weight",
        "layers.0.layer_norm1.weight",
        "layer_norm.weight",
        "embeddings.patch_embeddings.projection.weight",
    )
    rename = (
        *CLASSIFIER_BLOCKS,
        (r"\.layer_norm([12])\.", r".norm\1."),
        (r"^layer_norm\.", "norm_pre."),
    )
    fuse = ("q", "k", "v")
    settings = {"norm_eps": 1e-6, "positions_resize": "tile"}

    def configure(self, contents: Contents, config: dict) -> None:
        if not (config := encoder_config(config)):
            return
        # Inside another model's it says what differs from these.
        config = dict(num_attention_heads=16, window_size=_WINDOW) | config
        super().configure(contents, config)
        whole = config.get("global_attn_indexes")
        whole = _GLOBAL if whole is None else whole
        rope = config.get("rope_parameters")
        rope = dict(rope_theta=config.get("rope_theta", _BASE)) if rope is None else rope
        for key, known in (
            ("window_size", config["window_size"] != 0),
            ("global_attn_indexes", is_indexes(whole)),
            (
                "rope_parameters",
                isinstance(rope, dict) and rope.get("rope_type", "axial") == "axial",
            ),
        ):
            if not known:
                raise WeightsError(f"config.json has {key}={config[key]!r}: ViT cannot say it")
        base = rotary_base(rope.get("rope_theta", _BASE))
        _say(contents, config["window_size"], whole, base)
        size, windowed = config.get("image_size"), contents.settings["window_block_indexes"]
        square = not isinstance(size, list) or all(side == size[0] for side in size)
        if not square and len(windowed) < depth_of(contents):
            raise WeightsError(
                f"config.json has image_size={size!r}: global blocks scale both sides of a map by "
                "one of them, ViT's each side by itself"
            )
        for key in ("hidden_dropout", "attention_dropout"):
            if config.get(key):
                contents.notes.append(f"{key}={config[key]!r} of its config.json is left out")
