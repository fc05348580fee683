"""mmdetection's ViTDet, whose encoder has detectron2's keys, and the rest keys of its own."""

import re

from ..contents import FORMATS, Contents, Format, State
from .detectron2 import MMDETECTION, VIT_KEYS, cls_tokens

_PYRAMID, _HEADS = "pyramid of mmdetection's detector", "heads of mmdetection's detector"


@FORMATS.register("mmdet")
class MMDetection(Format):
    """A whole detector of mmdetection's projects/ViTDet. Its encoder is read; its pyramid and heads
    have neither the keys nor the boxes' encoding of detectron2's."""

    title = "mmdetection's projects/ViTDet (its encoder)"
    drop = {
        r"^neck\.": _PYRAMID,
        r"^(rpn_head|roi_head|bbox_head|mask_head)\.": _HEADS,
        r"^data_preprocessor\.": "pixel mean and std: those of the config are used",
    }
    rename = ((r"^backbone\.", ""),)
    new = Contents.new  # a detection encoder has all of it

    def recognises(self, state: State) -> bool:
        around = [k for k in state if not k.startswith("backbone.")]
        keys = [k.removeprefix("backbone.") for k in state if k.startswith("backbone.")]
        blocks = any(re.match(r"blocks\.\d+\.attn\.qkv\.weight$", k) for k in keys)
        return blocks and all(map(VIT_KEYS.match, keys)) and any(map(MMDETECTION.match, around))

    def finish(self, contents: Contents) -> None:
        reasons = dict.fromkeys(why for why, _ in contents.dropped.values())
        contents.around = tuple(why for why in reasons if why in (_PYRAMID, _HEADS))
        if "pos_embed" in contents.encoder:
            contents.prefix = cls_tokens(contents.encoder["pos_embed"])
