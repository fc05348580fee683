"""Swin and MViTv2, whose releases have the keys of detectron2's modules, timm's Swin, and ConvNeXt
in its authors', timm's, transformers' and torchvision's."""

import re

from ..contents import FORMATS, Contents, Format, State, WeightsError


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


# Where torchvision's blocks have a part, by the name of the others'.
_PARTS = {
    **dict.fromkeys(("dwconv", "conv_dw", "depthwise_conv"), "block.0"),
    **dict.fromkeys(("norm", "layer_norm"), "block.2"),
    **dict.fromkeys(("pwconv1", "mlp.fc1", "pointwise_conv1"), "block.3"),
    **dict.fromkeys(("pwconv2", "mlp.fc2", "pointwise_conv2"), "block.5"),
    "gamma": "layer_scale",
}
_IN_BLOCK = re.compile(
    r"^(?:model\.)?stages\.(\d)\.(?:blocks\.|layers\.)?(\d+)\.(.+?)(\.weight|\.bias|)$"
)
_BETWEEN = re.compile(
    r"^(?:model\.)?(?:stages\.(\d)\.downsample(?:_layers)?|downsample_layers\.(\d)|stem)\.(\d)\."
)


@FORMATS.register("convnext")
class ConvNeXt(_Hierarchical):
    """facebookresearch/ConvNeXt (arXiv:2201.03545), DINOv3's (arXiv:2508.10104), timm's
    `convnext_*`, transformers' `DINOv3ConvNext*`, torchvision's `convnext_*`, which is what
    `backbones.ConvNeXt` is made of."""

    title = (
        "ConvNeXt, DINOv3's, timm convnext_*, transformers DINOv3ConvNext*, torchvision convnext_*"
    )
    drop = {
        r"^(norms\.\d|norm|layer_norm|head\.norm)\.": "norm behind the last block",
        r"^(head|classifier)\.": "classifier's head",
        r"^mask_token$": "mask token",
    }
    new = r"^norm\d\."

    def recognises(self, state: State) -> bool:
        first = (
            *("stages.0.0.dwconv", "stages.0.blocks.0.conv_dw", "features.1.0.block.0"),
            *("stages.0.layers.0.depthwise_conv", "model.stages.0.layers.0.depthwise_conv"),
        )
        return any(f"{key}.weight" in state for key in first)

    def convert(self, state: State) -> Contents:
        renamed: State = {}
        for key, tensor in state.items():
            if ".grn." in key:
                raise WeightsError(
                    f"has {key}: ConvNeXt V2, whose norm of responses is not computed"
                )
            if between := _BETWEEN.match(key):
                stage = 2 * int(between[1] or between[2] or 0)
                key = f"features.{stage}.{between[3]}.{key[between.end() :]}"
            elif (inside := _IN_BLOCK.match(key)) and inside[3] in _PARTS:
                stage, part = 2 * int(inside[1]) + 1, _PARTS[inside[3]]
                key = f"features.{stage}.{inside[2]}.{part}{inside[4]}"
            if key.endswith(".layer_scale") and tensor.ndim == 1:
                tensor = tensor[:, None, None]
            renamed[key] = tensor
        return super().convert(renamed)
