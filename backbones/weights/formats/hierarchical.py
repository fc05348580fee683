"""Swin and MViTv2, whose releases have the keys of detectron2's modules, and timm's Swin."""

import re

from ..contents import FORMATS, Contents, Format, WeightsError


class _Hierarchical(Format):
    """`new` are the norms of the maps put out, which classifiers have not. A file with one of them
    is a detection encoder: it has all."""

    def finish(self, contents: Contents) -> None:
        if any(re.search(self.new, k) for k in contents.encoder):
            contents.new = Contents.new


@FORMATS.register("swin")
class Swin(_Hierarchical):
    """microsoft/Swin-Transformer's `swin_*`, timm's, and detectron2's `SwinTransformer` alone.

    timm merges patches in front of a stage, the others behind the stage before: the same function.
    """

    title = "microsoft/Swin-Transformer swin_*, timm swin_*"
    mark = r"^layers\.\d+\.blocks\.\d+\.attn\.relative_position_bias_table$"
    drop = {
        r"^norm\.": "norm behind the last block",
        r"^head\.": "classifier's head",
        r"\.attn_mask$": "masks of shifted windows: computed for each image",
    }
    new = r"^norm\d\."

    def finish(self, contents: Contents) -> None:
        super().finish(contents)
        # Computed from the window when a module is built; timm does not save it.
        contents.new += r"|\.relative_position_index$"
        state = contents.encoder
        merging = {int(m[1]) for k in state if (m := re.match(r"layers\.(\d+)\.downsample\.", k))}
        if merging and 0 not in merging:
            contents.encoder = {
                re.sub(
                    r"^layers\.(\d+)(?=\.downsample\.)", lambda m: f"layers.{int(m[1]) - 1}", k
                ): v
                for k, v in state.items()
            }


@FORMATS.register("mvitv2")
class MViTv2(_Hierarchical):
    """facebookresearch/mvit's `MViTv2_*`, and detectron2's `MViT` alone."""

    title = "facebookresearch/mvit MViTv2_*"
    mark = r"^blocks\.\d+\.attn\.pool_[qkv]\.weight$"
    drop = {
        r"^cls_token$": "cls token",
        r"^norm\.": "norm behind the last block",
        r"^head\.": "classifier's head",
    }
    new = r"^scale\d_norm\."

    def finish(self, contents: Contents) -> None:
        super().finish(contents)
        state = contents.encoder
        for key, tensor in state.items():
            if tensor.ndim == 5:  # a kernel for videos
                if tensor.shape[2] != 1:
                    raise WeightsError(f"{key} reads {tensor.shape[2]} video frames, not an image")
                state[key] = tensor.squeeze(2)
        for key, tensor in state.items():
            block = re.match(r"blocks\.\d+(?=\.proj\.weight$)", key)
            inside = state.get(f"{block[0]}.norm2.weight") if block else None
            if inside is not None and tensor.ndim == 2 and inside.numel() != len(tensor):
                raise WeightsError(
                    f"{block[0]} gets its channels, {len(tensor)}, in its MLP "
                    "(DIM_MUL_IN_ATT: False); in detectron2's MViT the attention makes them"
                )
