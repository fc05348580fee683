"""The encoders that are compared, each built by its own library's code, with the same sizes."""

from collections.abc import Callable
from functools import partial

import torch
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn

from backbones import SIZES, SimpleFeaturePyramid, build_encoder
from backbones.kernels import Linear
from experiments.training.training_loop import compile_blocks

from .cases import Case

_NECK = dict(
    in_feature="last_feat", out_channels=256, scale_factors=(4.0, 2.0, 1.0, 0.5), norm="LN"
)

# Rows of an encoder with rotary positions beside the absolute ones.
_ROTARY = {
    "rope": dict(positions="learned+rope"),
    "rope in windows": dict(positions="learned+rope(unit=token,coordinates=window)"),
    "rope of tokens": dict(positions="learned+rope(unit=token)"),
}

# Loaded before a row's memory counts.
MODULES = (
    "detectron2.modeling.backbone.vit",
    "transformers.models.vitdet.modeling_vitdet",
    "timm.models.vision_transformer_sam",
    "segment_anything.modeling.image_encoder",
)


def build(case: Case, implementation: str) -> tuple[nn.Module, Callable[[int], object]]:
    """A network with random weights, and what makes its input from a seed.

    Raises:
        ValueError: an implementation that has no such network.
    """
    torch.manual_seed(0)
    if case.module == "neck":
        return _neck(case, implementation), partial(_map, case)
    if case.module == "linear":
        kinds = {"fused": Linear, "detectron2": nn.Linear}
        dim = SIZES[case.size]["embed_dim"]
        return kinds[implementation](dim, 4 * dim), partial(_tokens, case)
    if case.module == "detector":
        return _detector(case, implementation), partial(_labelled_images, case)
    ours = {"fused": "fused", "compiled": "fused", "blocks compiled": "fused"}
    ours |= {word: word for word in ("reference", "triton")} | dict.fromkeys(_ROTARY, "fused")
    if implementation in ours:
        words = case.words() | _ROTARY.get(implementation, {})
        net = build_encoder(**words, attention=ours[implementation])
        if implementation == "compiled":
            net = torch.compile(net, fullgraph=True)
        if implementation == "blocks compiled":
            compile_blocks(net, fullgraph=True)
    else:
        net = _PEERS[implementation](case)
    return net, partial(_image, case)


def _image(case: Case, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(case.batch, 3, 16 * case.tokens, 16 * case.tokens)


def _tokens(case: Case, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(case.batch, case.tokens, case.tokens, SIZES[case.size]["embed_dim"])


def _map(case: Case, seed: int) -> Tensor:
    """As an encoder leaves it: channels last in memory."""
    return _tokens(case, seed).permute(0, 3, 1, 2)


def _global_blocks(case: Case) -> list[int]:
    with torch.device("meta"):
        plan = build_encoder(**case.words()).plan
    if any("residual" in word for word in plan):
        raise ValueError(f"{case}: only ours and detectron2 have conv blocks")
    return [i for i, word in enumerate(plan) if word == "global"]


def _detectron2(case: Case) -> nn.Module:
    from detectron2.modeling.backbone.vit import ViT

    size = SIZES[case.size]
    with torch.device("meta"):
        plan = build_encoder(**case.words()).plan
    return ViT(
        img_size=16 * case.tokens,
        embed_dim=size["embed_dim"],
        depth=size["depth"],
        num_heads=size["num_heads"],
        drop_path_rate=0.0,
        window_size=14,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        window_block_indexes=[i for i, word in enumerate(plan) if word != "global"],
        residual_block_indexes=[i for i, word in enumerate(plan) if "residual" in word],
        use_rel_pos=case.rel_pos,
        out_feature="last_feat",
    )


def _transformers(case: Case) -> nn.Module:
    from transformers import VitDetBackbone, VitDetConfig

    size = SIZES[case.size]
    windows = sorted(set(range(size["depth"])) - set(_global_blocks(case)))
    return VitDetBackbone(
        VitDetConfig(
            hidden_size=size["embed_dim"],
            num_hidden_layers=size["depth"],
            num_attention_heads=size["num_heads"],
            image_size=16 * case.tokens,
            window_block_indices=windows,
            use_relative_position_embeddings=case.rel_pos,
            window_size=14,
        )
    )


def _timm(case: Case) -> nn.Module:
    from timm import create_model

    if case.size == "eva02-b":
        if len(_global_blocks(case)) < SIZES[case.size]["depth"]:
            raise ValueError("timm's EVA-02 has no windows")
        return create_model(
            "eva02_base_patch14_448",
            patch_size=16,
            img_size=16 * case.tokens,
            ref_feat_shape=(16, 16),
            num_classes=0,
            global_pool="",
        )
    names = {"vit-b": "base", "vit-l": "large", "vit-h": "huge"}
    if case.size not in names:
        raise ValueError(f"timm has no samvit of size {case.size}")
    net = create_model(
        f"samvit_{names[case.size]}_patch16",
        img_size=16 * case.tokens,
        num_classes=0,
        global_pool="",
        global_attn_indexes=_global_blocks(case),
        use_rel_pos=case.rel_pos,
    )
    net.neck = nn.Identity()  # SAM's; the others end with the last block
    return net


def _segment_anything(case: Case) -> nn.Module:
    from segment_anything.modeling.image_encoder import ImageEncoderViT

    size = SIZES[case.size]
    net = ImageEncoderViT(
        img_size=16 * case.tokens,
        embed_dim=size["embed_dim"],
        depth=size["depth"],
        num_heads=size["num_heads"],
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=case.rel_pos,
        window_size=14,
        global_attn_indexes=_global_blocks(case),
    )
    net.neck = nn.Identity()
    return net


_PEERS = {
    "detectron2": _detectron2,
    "transformers": _transformers,
    "timm": _timm,
    "segment-anything": _segment_anything,
}


class _Given(Backbone):
    """Stands for the encoder below a neck: hands the map on."""

    def __init__(self, case: Case):
        super().__init__()
        with torch.device("meta"):
            self._shape = build_encoder(**case.words()).output_shape()
        self.square_pad = 0

    def output_shape(self):
        return self._shape

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"last_feat": x}


def _neck(case: Case, implementation: str) -> nn.Module:
    if implementation == "detectron2":
        from detectron2.modeling.backbone.vit import SimpleFeaturePyramid as Theirs

        return Theirs(_Given(case), top_block=LastLevelMaxPool(), **_NECK)
    if implementation != "fused":
        raise ValueError(f"{implementation} has no simple feature pyramid")
    return SimpleFeaturePyramid(_Given(case), top_block=LastLevelMaxPool(), **_NECK)


def _detector(case: Case, implementation: str) -> nn.Module:
    """Mask R-CNN as the published config describes it, around ours or detectron2's backbone."""
    from detectron2.config import instantiate

    from experiments.recipe import config

    cfg = config.load(config.base_path("coco", case.size))
    cfg.model.backbone.update(case.words(), square_pad=16 * case.tokens, drop_path_rate=0.0)
    detector = instantiate(cfg.model)
    if implementation == "detectron2":
        from detectron2.modeling.backbone.vit import SimpleFeaturePyramid as Theirs

        detector.backbone = Theirs(
            _detectron2(case),
            top_block=LastLevelMaxPool(),
            square_pad=16 * case.tokens,
            **_NECK,
        )
    elif implementation != "fused":
        raise ValueError(f"{implementation} has no simple feature pyramid")
    return detector


def _labelled_images(case: Case, seed: int) -> list[dict]:
    """Noise images with 20 boxes and masks each, as detectron2's detectors take them."""
    torch.manual_seed(seed)
    return [_labelled_image(16 * case.tokens) for _ in range(case.batch)]


def _labelled_image(side: int) -> dict:
    from detectron2.structures import BitMasks, Boxes, Instances

    corners = torch.rand(20, 2) * side * 0.7
    boxes = torch.cat([corners, corners + 16 + torch.rand(20, 2) * side * 0.25], 1)
    rows = torch.arange(side)
    inside = [(rows >= boxes[:, i, None]) & (rows < boxes[:, i + 2, None]) for i in (0, 1)]
    instances = Instances(
        (side, side),
        gt_boxes=Boxes(boxes),
        gt_classes=torch.randint(80, (20,)),
        gt_masks=BitMasks(inside[1][:, :, None] & inside[0][:, None, :]),
    )
    image = torch.randint(256, (3, side, side), dtype=torch.uint8)
    return dict(image=image, instances=instances, height=side, width=side)
