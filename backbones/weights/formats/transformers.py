"""transformers' `ViT*`, `ViTMAE*`, `VitDet*`, `Dinov2*`, `Siglip*` and `Sam*`.

Keys are those that `save_pretrained` writes ("encoder.layer.0.attention.attention.query.weight")
or, where they differ, those of transformers 5's modules ("layers.0.attention.q_proj.weight").
"""

import math
import re

from torch import nn

from ...activations import QuickGELU, TanhGELU
from ..contents import FORMATS, Contents, Format, State, WeightsError, square_grid
from .shared import fold_layer_scale, gated, map_positions

# Of CLIP's towers and SigLIP's.
CLIP_TOWER = (
    (r"^vision_model\.", ""),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^encoder\.layers\.(\d+)\.", r"blocks.\1."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"\.self_attn\.", ".attn."),
)
CLASSIFIER_BLOCKS = (
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.(?:attention\.query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(?:attention\.key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(?:attention\.value|v_proj)\.", ".attn.v."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
)
# By transformers' `hidden_act`.
ACTIVATIONS = {
    "gelu": nn.GELU,
    "gelu_pytorch_tanh": TanhGELU,
    "quick_gelu": QuickGELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}


class HuggingFace(Format):
    """A format whose folders say in config.json what the weights do not show.

    Class attributes:
        models: transformers' `model_type` of those that compute what the format says. Others may
            have its keys.
    """

    models: tuple[str, ...] = ()

    def configure(self, contents: Contents, config: dict) -> None:
        config = encoder_config(config)
        if (model := config.get("model_type", self.models[0])) not in self.models:
            raise WeightsError(
                f"config.json has model_type={str(model)[:80]!a}: another model than "
                f"{self.title}, whatever its keys"
            )
        for word, key, allowed in (
            ("norm_eps", "layer_norm_eps", lambda v: isinstance(v, float) and 0 < v < 1),
            ("num_heads", "num_attention_heads", _is_count),
            ("window_size", "window_size", lambda v: v == 0 or _is_count(v)),
            ("window_block_indexes", "window_block_indices", is_indexes),
            ("act_layer", "hidden_act", lambda v: isinstance(v, str) and v in ACTIVATIONS),
        ):
            if key in config:
                if not allowed(config[key]):
                    raise WeightsError(f"config.json has {key}={config[key]!r}: ViT cannot say it")
                contents.settings[word] = config[key]
        if "hidden_act" in config:
            contents.settings["act_layer"] = ACTIVATIONS[config["hidden_act"]]
        if contents.settings.get("window_size") == 0:  # VitDet's word for no windows
            contents.settings |= dict(window_size=14, window_block_indexes=[])
        contents.grid = _grid(contents, config)


def encoder_config(config: dict) -> dict:
    """The part of a config.json that is the image encoder's."""
    for part in ("detector_config", "vision_config", "backbone_config"):
        if isinstance(config.get(part), dict):
            config = config[part]
    return config


def rotary_base(base) -> float:
    """A config's `rope_theta`, as `Rope` takes it.

    Raises:
        WeightsError: it does not.
    """
    if not isinstance(base, int | float) or not 1 <= base < math.inf:
        raise WeightsError(f"config.json has rope_theta={base!r}: ViT cannot say it")
    return base


def _grid(contents: Contents, config: dict) -> tuple[int, int] | None:
    """Rows and columns of the positions, where the config says an image size that fits them."""
    size = config.get("pretrain_image_size", config.get("image_size"))
    patch = config.get("patch_size")
    sides = size if isinstance(size, list) else [size, size]
    if "pos_embed" not in contents.encoder or not all(map(_is_count, [*sides, patch])):
        return None
    grid = tuple(side // patch for side in sides)
    fits = len(grid) == 2 and math.prod(grid) == _entries(contents)
    return grid if fits else None


def _entries(contents: Contents) -> int:
    pos_embed = contents.encoder.get("pos_embed")
    return 0 if pos_embed is None or pos_embed.ndim != 3 else pos_embed.shape[1] - contents.prefix


def _is_count(value) -> bool:
    return isinstance(value, int) and value > 0


def is_indexes(value) -> bool:
    return isinstance(value, list) and all(isinstance(i, int) and i >= 0 for i in value)


@FORMATS.register("hf-vit")
class HfViT(HuggingFace):
    """`transformers.ViTModel`, `ViTForImageClassification`, ..., and what has the same keys: the
    encoder of `ViTMAE*`, `DeiT*`, `ViTMSN*` (of norm_eps 1e-6) and `IJepa*`."""

    title = "transformers ViT*, ViTMAE*, DeiT*, ViTMSN*, IJepa*"
    models = ("vit", "vit_mae", "deit", "vit_msn", "ijepa")
    mark = r"^((vit|deit|ijepa)\.)?(encoder\.layer|layers)\.\d+\.layernorm_before\."
    needs = ("pos_embed",)
    drop = {
        r"\bembeddings\.cls_token$": "cls token",
        r"\bembeddings\.distillation_token$": "distillation token",
        r"\bembeddings\.mask_token$": "mask token",
        r"^(\w+\.)?layernorm\.": "norm behind the last block",
        r"^(\w+\.)?pooler\.": "pooler",
        r"^(\w+_)?classifier\.": "classifier's head",
        r"^decoder\.": "decoder of masked patches",
    }
    rename = (
        (r"^(vit|deit|ijepa)\.", ""),
        *CLASSIFIER_BLOCKS,
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"\.output\.dense\.", ".mlp.fc2."),
    )
    fuse = ("q", "k", "v")
    settings = {"norm_eps": 1e-12}

    def finish(self, contents: Contents) -> None:
        tokens = [k for k in contents.dropped if re.search(r"\b(cls|distillation)_token$", k)]
        if channels := _entries(contents) and contents.encoder["pos_embed"].shape[2]:
            contents.prefix = sum(contents.dropped[k][1] // channels for k in tokens)
        entries = _entries(contents)
        if not contents.prefix and not square_grid(entries) and square_grid(entries - 1):
            raise WeightsError(
                "has a position of a class token and no class token: it is of ViTPose, which adds "
                "that position to every patch's, and ViT does not"
            )


@FORMATS.register("hf-dinov2")
class HfDinov2(HuggingFace):
    """`transformers.Dinov2Model`, `Dinov2WithRegistersModel`, ...: LayerScale becomes part of the
    linear map in front of it."""

    title = "transformers Dinov2*, Dinov2WithRegisters*"
    models = ("dinov2", "dinov2_with_registers")
    needs = ("pos_embed",)
    mark = r"^(dinov2(_with_registers)?\.)?encoder\.layer\.\d+\.layer_scale1\.lambda1$"
    drop = {
        r"\bembeddings\.cls_token$": "cls token",
        r"\bembeddings\.mask_token$": "mask token",
        r"\bembeddings\.register_tokens$": "register tokens",
        r"^(\w+\.)?layernorm\.": "norm behind the last block",
        r"^classifier\.": "classifier's head",
    }
    registers = r"\bembeddings\.register_tokens$"
    rename = (
        (r"^dinov2(_with_registers)?\.", ""),
        *CLASSIFIER_BLOCKS,
        (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
        (r"\.mlp\.weights_in\.", ".mlp.fc1."),  # the giant's SwiGLU
        (r"\.mlp\.(weights_out|down_proj)\.", ".mlp.w3."),
        (r"\.mlp\.gate_proj\.", ".mlp.w1."),
        (r"\.mlp\.up_proj\.", ".mlp.w2."),
    )
    fuse = ("q", "k", "v")

    def finish(self, contents: Contents) -> None:
        gated(contents)
        contents.prefix = 1
        fold_layer_scale(contents)


@FORMATS.register("hf-vitdet")
class HfVitDet(HuggingFace):
    """`transformers.VitDetModel`, `VitDetBackbone`, and the latter in `VitMatteForImageMatting`."""

    title = "transformers VitDet*"
    models = ("vitdet", "vitmatte")
    mark = r"^((backbone|vitdet)\.)?encoder\.layer\.\d+\.attention\.qkv\."
    drop = {r"^decoder\.": "VitMatte's decoder"}
    rename = (
        (r"^(backbone|vitdet)\.", ""),
        (r"^embeddings\.position_embeddings$", "pos_embed"),
        (r"^embeddings\.projection\.", "patch_embed.proj."),
        (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
        (r"\.attention\.", ".attn."),
    )
    new = Contents.new  # a detection encoder has all of it

    def finish(self, contents: Contents) -> None:
        contents.prefix = 1


@FORMATS.register("hf-siglip")
class HfSiglip(HuggingFace):
    """`transformers.SiglipModel`, `SiglipVisionModel`, `SiglipForImageClassification`: SigLIP's and
    SigLIP 2's of one image size (arXiv:2303.15343), whose GELU is a tanh."""

    title = "transformers Siglip*"
    models = ("siglip_vision_model", "siglip")
    mark = r"^(vision_model\.)?encoder\.layers\.\d+\.layer_norm1\."
    without = r"\bpre_la\w*norm\.|\bclass_embedding$|\.self_attn\.qkv\."
    drop = {
        r"^text_(model|projection)\.": "text tower",
        r"^logit_(scale|bias)$": "scale of the contrastive loss",
        r"\bembeddings\.position_ids$": "indexes of positions",
        r"\bpost_layernorm\.": "norm behind the last block",
        r"^(vision_model\.)?head\.": "attention pooling",
        r"^classifier\.": "classifier's head",
    }
    rename = CLIP_TOWER
    fuse = ("q_proj", "k_proj", "v_proj")
    needs = ("pos_embed",)
    settings = {"norm_eps": 1e-6, "act_layer": TanhGELU}

    def recognises(self, state: State) -> bool:
        patches = r"^(vision_model\.)?embeddings\.patch_embedding\.bias$"  # CLIP's have none
        return super().recognises(state) and any(re.search(patches, k) for k in state)

    def finish(self, contents: Contents) -> None:
        if "pos_embed" in contents.encoder:
            contents.encoder["pos_embed"] = contents.encoder["pos_embed"][None]


@FORMATS.register("hf-sam")
class HfSam(HuggingFace):
    """`transformers.SamModel`, `SamVisionModel`, `SamHQ*` (arXiv:2304.02643)."""

    title = "transformers Sam*, SamHQ*"
    models = ("sam_vision_model", "sam", "sam_hq_vision_model", "sam_hq")
    mark = r"^(vision_encoder\.)?layers\.\d+\.mlp\.lin1\."
    drop = {
        r"^prompt_encoder\.": "SAM's prompt encoder",
        r"^mask_decoder\.": "SAM's mask decoder",
        r"^shared_image_embedding\.": "positions of SAM's prompts",
    }
    rename = (
        (r"^vision_encoder\.", ""),
        (r"^layers\.(\d+)\.", r"blocks.\1."),
        (r"^(blocks\.\d+)\.layer_norm([12])\.", r"\1.norm\2."),
        (r"\.mlp\.lin([12])\.", r".mlp.fc\1."),
        (r"^patch_embed\.projection\.", "patch_embed.proj."),
        (r"^neck\.conv1\.", "neck.0."),
        (r"^neck\.layer_norm1\.", "neck.1."),
        (r"^neck\.conv2\.", "neck.2."),
        (r"^neck\.layer_norm2\.", "neck.3."),
    )
    new = Contents.new  # relative positions and the neck are all there

    def configure(self, contents: Contents, config: dict) -> None:
        grid = contents.grid  # the positions are a map
        super().configure(contents, config)
        contents.grid = grid
        config = config.get("vision_config", config)
        if isinstance(config, dict) and "global_attn_indexes" in config:
            whole = config["global_attn_indexes"]
            if not is_indexes(whole):
                raise WeightsError(
                    f"config.json has global_attn_indexes={whole!r}: ViT cannot say it"
                )
            keys = (re.match(r"blocks\.(\d+)\.", key) for key in contents.encoder)
            windowed = {int(m[1]) for m in keys if m} - set(whole)
            contents.settings["window_block_indexes"] = sorted(windowed)

    def finish(self, contents: Contents) -> None:
        map_positions(contents)
