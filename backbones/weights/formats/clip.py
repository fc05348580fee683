"""Image towers of CLIP (arXiv:2103.00020): OpenCLIP's, OpenAI's and transformers'."""

from ..contents import FORMATS, Contents, Format, State, WeightsError
from .shared import fold_layer_scale, is_pe, unbiased_stem
from .transformers import CLIP_TOWER, HuggingFace

_TEXT = "text tower"
_LOSS = "scale of the contrastive loss"
_SIZE = "size of the model"
_PROJECTION = "projection to the space shared with text"


@FORMATS.register("openclip")
class OpenClip(Format):
    """`open_clip.CLIP`, `CustomTextCLIP`, `CoCa` and OpenAI's `clip.model.CLIP`, or the
    `VisionTransformer` in one of them alone. FLIP's models that OpenCLIP released are such files.

    Whether its activation is GELU (OpenCLIP's default) or QuickGELU (OpenAI's, and OpenCLIP's
    "*-quickgelu") is not seen in a file: it is the user's `act_layer`.
    """

    title = "OpenCLIP, OpenAI CLIP"
    mark = r"^(visual\.)?class_embedding$|^visual\.(trunk|attnpool)\."
    drop = {
        r"^(visual\.)?class_embedding$": "cls token",
        r"^(visual\.)?ln_post\.": "norm behind the last block",
        r"^(visual\.)?attn_pool(_contrastive)?\.": "attention pooling",
        r"^(visual\.)?proj$": _PROJECTION,
    }
    rename = (
        (r"^visual\.", ""),
        (r"^conv1\.", "patch_embed.proj."),
        (r"^positional_embedding$", "pos_embed"),
        (r"^ln_pre\.", "norm_pre."),
        (r"^transformer\.resblocks\.(\d+)\.", r"blocks.\1."),
        (r"\.ln_([12])\.", r".norm\1."),
        (r"\.ls_([12])\.gamma$", r".ls\1.gamma"),
        (r"\.attn\.in_proj_", ".attn.qkv."),
        (r"\.attn\.out_proj\.", ".attn.proj."),
        (r"\.mlp\.c_fc\.", ".mlp.fc1."),
        (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    )
    needs = ("pos_embed",)
    settings = {"norm_eps": 1e-5, "act_layer": None}

    def recognises(self, state: State) -> bool:
        return super().recognises(state) and not is_pe(state)

    def convert(self, state: State) -> Contents:
        # In a whole model, the same keys without "visual." are the text tower's.
        tower = {k: v for k, v in state.items() if k.startswith("visual.")} or state
        contents = super().convert(tower)
        around = {
            "logit_scale": _LOSS,
            "logit_bias": _LOSS,
            "input_resolution": _SIZE,
            "context_length": _SIZE,
            "vocab_size": _SIZE,
        }
        for key, tensor in state.items():
            if key not in tower:
                contents.drop(key, tensor, around.get(key, _TEXT))
        return contents

    def finish(self, contents: Contents) -> None:
        keys = contents.encoder
        if any(key.startswith("trunk.") for key in keys):
            raise WeightsError(
                "its image tower is timm's: save model.visual.trunk.state_dict(), that is read"
            )
        if any(key.startswith("attnpool.") for key in keys):
            raise WeightsError("its image tower is a ResNet: take a ViT")
        fold_layer_scale(contents)
        _finish_stem(contents)


@FORMATS.register("hf-clip")
class HfClip(HuggingFace):
    """`transformers.CLIPModel`, `CLIPVisionModel`, `CLIPVisionModelWithProjection`, ..."""

    title = "transformers CLIP*"
    mark = r"^(vision_model\.)?pre_layrnorm\."
    drop = {
        r"^text_(model|projection)\.": _TEXT,
        r"^logit_scale$": _LOSS,
        r"^visual_projection\.": _PROJECTION,
        r"\bembeddings\.class_embedding$": "cls token",
        r"\bembeddings\.position_ids$": "indexes of positions",
        r"\bpost_layernorm\.": "norm behind the last block",
        r"^classifier\.": "classifier's head",
    }
    rename = (*CLIP_TOWER, (r"^pre_layrnorm\.", "norm_pre."))
    fuse = ("q_proj", "k_proj", "v_proj")
    needs = ("pos_embed",)
    models = tuple(
        f"{name}{part}"
        for name in ("clip", "altclip", "chinese_clip", "clipseg", "metaclip_2")
        for part in ("", "_vision_model")
    )
    # QuickGELU in OpenAI's, GELU in LAION's: a config.json says which.
    settings = {"norm_eps": 1e-5, "act_layer": None}

    def finish(self, contents: Contents) -> None:
        _finish_stem(contents)


def _finish_stem(contents: Contents) -> None:
    """CLIP's patch embedding has no bias, its positions are (1 + rows * columns, C)."""
    contents.prefix = 1
    unbiased_stem(contents)
    if "pos_embed" in contents.encoder:
        contents.encoder["pos_embed"] = contents.encoder["pos_embed"][None]
