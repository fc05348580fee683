"""Models that compute another function than the encoders here, by name.

Their files are recognised before any format is looked for: many of them have a format's keys too,
and some differ in nothing but that a tensor is there, or is not.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .contents import State, WeightsError

_ROTARY = "rotary positions, in keys that are not read"
_BIASES = "biases by relative position, which ViT does not compute"
_UNREAD = "its keys are not read: microsoft's and timm's are, of the same function"
_FRAMES = "it reads video frames, not an image"


@dataclass(frozen=True)
class Foreign:
    """Files of a model, or of a family.

    Args:
        name: the model's.
        why: what it is or does that the encoders here do not.
        has: regular expressions; each matches a key of such a file.
        lacks: this matches none.
        shape: whether it may be one's, of the tensor whose key the first of `has` matches.
    """

    name: str
    why: str
    has: tuple[str, ...]
    lacks: str = r"(?!)"
    shape: Callable[[Tensor], bool] = lambda tensor: True

    def is_of(self, state: State, keys: str) -> bool:
        """Whether a file is of this model, by its tensors and by its keys, a line each."""
        found = [re.search(pattern, keys, re.MULTILINE) for pattern in self.has]
        if not all(found) or re.search(self.lacks, keys, re.MULTILINE):
            return False
        return self.shape(state[_line(keys, found[0].start())])


def _has_frames(kernel: Tensor) -> bool:
    return kernel.ndim == 5 and kernel.shape[2] > 1


def _line(text: str, at: int) -> str:
    return text[text.rfind("\n", 0, at) + 1 :].partition("\n")[0]


# The first that fits names the file. "(^|\.)" allows for what wrappers put in front.
MODELS = (
    Foreign(
        "Co-DETR (or another DETR of mmdetection)",
        "its encoder is mmdetection's Swin, or EVA-02's ViT in keys that are not read",
        (r"^query_head\.", r"^backbone\."),
    ),
    Foreign(
        "SAM 2",
        "its encoder is Hiera, no plain ViT",
        (r"^(image_encoder\.trunk|vision_encoder\.backbone)\.blocks\.\d+\.",),
    ),
    Foreign("MobileSAM", "its encoder is TinyViT", (r"^image_encoder\.layers\.\d+\.blocks\.",)),
    Foreign(
        "C-RADIO (or another RADIO)",
        "it cuts and resizes positions in a way of its own, and has linear patches",
        (r"(^|\.)(patch_generator\.|input_conditioner\.|embeddings\.cls_register_token$)",),
    ),
    Foreign(
        "a detector on Perception Encoder that is none of PE-Det's Mask R-CNNs",
        _ROTARY,
        (r"(^|\.)(net|bottom_up)\.transformer\.resblocks\.\d+\.",),
        lacks=r"^backbone\.net\.rope_win\.freqs_cos$",
    ),
    Foreign(
        "EVA-02-CLIP",
        "its attention has a norm inside, which ViT does not compute",
        (
            r"(^|\.)blocks\.\d+\.attn\.(inner_attn_ln|norm)\.",
            r"(^|\.)blocks\.\d+\.mlp\.(w3|fc1_g)\.",
        ),
    ),
    Foreign(
        "MIMDet",
        "its encoder reads a share of the patches behind convolutions, and a decoder fills the map",
        (
            r"^backbone\..*\bdecoder\.decoder_blocks\.\d+\.",
            r"^backbone\..*\bencoder\.blocks\.\d+\.",
        ),
    ),
    Foreign(
        "BEiT or Data2Vec",
        _BIASES,
        (r"(^|\.)(blocks\.\d+\.attn|rel_pos_bias)\.relative_position_bias_table$",),
        lacks=r"(^|\.)layers\.\d+\.",
    ),
    Foreign(
        "BEiT or Data2Vec of transformers",
        f"{_BIASES}, or LayerScale and biases of q and v in keys that are not read",
        (r"(^|\.)(encoder\.layer|layers)\.\d+\.(lambda_1$|.*\brelative_position_bias\.)",),
        lacks=r"\.blocks\.\d+\.",
    ),
    Foreign(
        "YOLOS",
        "its patches attend to detection tokens, which ViT has not",
        (r"(^|\.)embeddings\.detection_tokens$",),
    ),
    Foreign(
        "ViTPose",
        "it adds the class token's position to every patch's, which ViT does not",
        (r"^keypoint_head\.", r"^backbone\.blocks\.\d+\."),
    ),
    Foreign(
        "ViTPose++",
        "its MLPs have experts, which ViT's have not",
        (r"(^|\.)mlp\.experts\.\d+\.",),
    ),
    Foreign("MLCD", _ROTARY, (r"(^|\.)class_pos_emb$",)),
    Foreign(
        "SigLIP 2 with patches of any number (NaFlex)",
        "it has linear patches, and resizes positions with antialiasing",
        (
            r"^(vision_model\.)?embeddings\.patch_embedding\.weight$",
            r"\.layers\.\d+\.layer_norm1\.",
        ),
        shape=lambda kernel: kernel.ndim == 2,
    ),
    Foreign(
        "NaFlexViT",
        "it has linear patches, and resizes positions with antialiasing",
        (r"^embeds\.(proj|pos_embed)\b",),
    ),
    Foreign("AIMv2 of transformers", "norms by root mean square", (r"\.layers\.\d+\.rms_norm1\.",)),
    Foreign("LW-DETR", "its keys are not read", (r"(^|\.)encoder\.layer\.\d+\.gamma_1$",)),
    Foreign(
        "Hiera",
        "it pools the map between its blocks",
        (r"(^|\.)(pos_embed_win(dow)?$|blocks\.\d+\.proj\.weight$)",),
        lacks=r"\.attn\.pool_[qkv]\.",
    ),
    Foreign(
        "timm's MViTv2",
        "its keys are not read: facebookresearch/mvit's are, of the same function",
        (r"^stages\.\d+\.blocks\.\d+\.attn\.(norm|pool)_[qkv]\.",),
    ),
    Foreign(
        "Swin V2",
        "scaled cosine attention and positions by an MLP, which detectron2's Swin does not compute",
        (
            r"(^|\.)(layers|stages|features)\.\d+(\.blocks)?\.\d+\.(attn|attention\.self|attention)\."
            r"(w_msa\.)?(cpb_mlp|logit_scale|continuous_position_bias_mlp)\b",
        ),
    ),
    Foreign(
        "Swin of torchvision",
        _UNREAD,
        (r"^features\.\d+\.\d+\.attn\.relative_position_bias_table$",),
    ),
    Foreign(
        "Swin of transformers",
        _UNREAD,
        (r"(^|\.)encoder\.layers\.\d+\.blocks\.\d+\.attention\.",),
    ),
    Foreign("Swin of mmdetection", _UNREAD, (r"(^|\.)stages\.\d+\.blocks\.\d+\.attn\.w_msa\.",)),
    Foreign(
        "a ViT with parallel branches",
        "its blocks are not one attention and one MLP, in turn",
        (r"^blocks\.\d+\.(attns\.\d+|ffns\.\d+|in_proj|attn_out_proj)\.",),
    ),
    *(
        Foreign(f"a model of videos ({kind})", _FRAMES, (pattern,), r"\.attn\.pool_", _has_frames)
        for kind, pattern in (
            ("VideoMAE, V-JEPA, ...", r"(^|\.)patch_embed\.proj\.weight$"),
            ("of transformers", r"(^|\.)embeddings\.patch_embeddings?\.(projection|proj)\.weight$"),
        )
    ),
)


def refuse_foreign(state: State) -> None:
    """Nothing, for files of other models.

    Raises:
        WeightsError: the file is of one of `MODELS`; says which, and what it computes.
    """
    keys = "\n".join(state)
    model = next((model for model in MODELS if model.is_of(state, keys)), None)
    if model:
        raise WeightsError(f"it is of {model.name}: {model.why}")
