"""detectron2's detectors, backbones and encoders, and this suite's, which have their keys."""

import re
from typing import Any

from torch import Tensor

from ...arguments import number, whole_number
from ...positions import RESIZE
from ...registries import choose
from ...rope import Rope
from ...unseen import KEY, read_words
from ..contents import (
    FORMATS,
    NEW_IN_DETECTION,
    Contents,
    Format,
    State,
    WeightsError,
    square_grid,
)
from .shared import join_biases

# What stands in front of an encoder's keys: in a whole detector, in a backbone alone (encoder and
# pyramid), in a detector without a pyramid, in an encoder alone.
_IN_FRONT = ("backbone.net.", "backbone.bottom_up.", "net.", "bottom_up.", "backbone.", "")
VIT_KEYS = re.compile(
    r"(pos_embed|registers|mask_token|unseen\._extra_state)$|patch_embed\.|norm_pre\.|neck\."
    r"|blocks\.\d+\.(norm[12]|attn\.qkv|attn\.proj|attn\.rel_pos_[hw]$|mlp\.fc[12]|residual"
    r"|mlp\.w[123]|mlp\.norm|attn\.[qk]_norm|ls[12]\.gamma$)"
)

# What mmdetection's detectors have around the encoder.
MMDETECTION = re.compile(r"(neck|rpn_head|roi_head|bbox_head|mask_head)\.")

# What `Unseen` may say.
_UNSEEN = {"rope", "positions_resize", "num_heads", "norm_eps", "window_size", "windows"}

# What detection adds to a plain ViT, Swin and MViT.
_ADDED = re.compile(rf"{NEW_IN_DETECTION}|^norm\d\.|^scale\d_norm\.")


@FORMATS.register("detectron2")
class Detectron2(Format):
    """`model_final.pth` of `DetectionCheckpointer` and of this suite's runs, the model zoo's .pkl:
    a whole detector on any encoder, a backbone (encoder and pyramid), or a plain ViT alone.

    An encoder alone has no key of its own kind: it is known by having none but those of `ViT`.
    """

    title = "detectron2 detectors, backbones and ViTs; this suite's runs"
    drop = {
        r"^pixel_(mean|std)$": "pixel mean and std: those of the config are used",
        r"(^|\.)anchor_generator\.cell_anchors": "anchors: those of the config are used",
    }
    new = Contents.new  # a detector has all that detection adds; see `finish`

    def recognises(self, state: State) -> bool:
        front = _in_front(state)
        if any(re.search(r"\.attn\.rope\.freqs_cos$", key) for key in state):
            return False  # EVA-02-Det
        if front not in ("", "backbone."):
            return True
        keys = [k.removeprefix(front) for k in state if k.startswith(front)]
        # timm's samvit_* has the keys of a ViT with SAM's neck, and positions as (1, H, W, C).
        flat = all(v.ndim == 3 for k, v in state.items() if k == f"{front}pos_embed")
        blocks = any(k.endswith(".attn.qkv.weight") for k in keys)
        theirs = front and any(map(MMDETECTION.match, state))
        return flat and blocks and all(map(VIT_KEYS.match, keys)) and not theirs

    def finish(self, contents: Contents) -> None:
        state, front = contents.encoder, _in_front(contents.encoder)
        contents.encoder = {
            k.removeprefix(front): v for k, v in state.items() if k.startswith(front)
        }
        around = "" if front.startswith("backbone.") else "backbone."
        contents.detector = {around + k: v for k, v in state.items() if not k.startswith(front)}
        if not contents.detector and not any(_ADDED.search(k) for k in contents.encoder):
            contents.new = _ADDED.pattern  # a pre-trained encoder in these keys
        join_biases(contents)  # EVA-01's detectors
        if "blocks.0.norm1.running_mean" in contents.encoder:
            contents.settings["norm_eps"] = 1e-5
        if (unseen := contents.encoder.pop(KEY, None)) is not None:
            contents.drop(front + KEY, unseen, "words that leave no weight: read")
            contents.settings |= _settings(unseen)
        if "pos_embed" in contents.encoder:
            contents.prefix = cls_tokens(contents.encoder["pos_embed"])


def _settings(unseen: Tensor) -> dict[str, Any]:
    """What a file of this suite says in words.

    Raises:
        WeightsError: they are of no encoder, or say what this version does not know.
    """
    try:
        words = read_words(unseen)
        if unknown := words.keys() - _UNSEEN:
            raise ValueError(f"{KEY} has {min(unknown)}, which this version does not know")
        if "rope" in words:
            Rope(**dict(length=1) | words["rope"])
        if "positions_resize" in words:
            choose("positions_resize", words["positions_resize"], RESIZE)
        whole_number("num_heads", words.get("num_heads", 1), least=1)
        number("norm_eps", words.get("norm_eps", 0.0), least=0)
        whole_number("window_size", words.get("window_size", 1), least=1)
        windows = {str(word): list(blocks) for word, blocks in words.pop("windows", {}).items()}
        windowed = [whole_number("windows", i, least=0) for one in windows.values() for i in one]
    except ValueError as error:
        raise WeightsError(str(error)) from error
    except (TypeError, AttributeError) as error:
        raise WeightsError(f"{KEY} has words of another kind") from error
    others = [word for word in windows if word != "window"]
    return words | dict(window_block_indexes=sorted(windowed), other_windows=others)


def _in_front(state: State) -> str:
    return next((front for front in _IN_FRONT if any(k.startswith(front) for k in state)), "")


def cls_tokens(pos_embed: Tensor) -> int:
    """How many entries of (1, P, C) positions, 0 or 1, stand in front of a square of patches."""
    for count in (0, 1) if pos_embed.ndim == 3 else ():
        if square_grid(pos_embed.shape[1] - count):
            return count
    raise WeightsError(
        f"pos_embed is {tuple(pos_embed.shape)}, not (1, rows * rows, channels), or one entry more "
        "for a cls token"
    )
