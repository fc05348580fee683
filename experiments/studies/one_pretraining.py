"""Is a plain or a hierarchical backbone better, both pre-trained alike?

    make ablation-one-pretraining             mini scale: no pre-training, 2 minutes a row and seed
    make ablation-one-pretraining SCALE=coco  COCO, from DINOv3's weights

Table 5 of arXiv:2203.16527 compares plain ViTs of MAE with Swins and MViTv2s of supervised labels,
so backbone and pre-training change together. DINOv3 (arXiv:2508.10104) distilled one teacher, on
the same images, into ViTs and ConvNeXts of about the same size:

    plain   hierarchical   parameters of the encoders, M
    vit-s   convnext-t     21, 28
    vit-s+  convnext-s     29, 49
    vit-b   convnext-b     85, 88
    vit-l   convnext-l     303, 196

The ViTs have ViTDet's recipe (Table 11) with rotary positions and registers, as pre-trained; the
ConvNeXts Swin's, under FPN with their own four maps. Neither was tuned for these weights, and they
differ in epochs (100 and 50), as the paper's do. Nobody published these rows.

At mini scale there are no such weights: a ViT with DINOv3's words and a ConvNeXt of as many
parameters, both from random weights, 480 iterations.

Hardware of the paper: 64 GPUs, one image each. By the released models' training times (A100) a row
of vit-b takes 16 hours, of vit-l 31; of the ConvNeXts, as of Swin-B, about 10.
"""

from experiments.studies import Study, Variant, Words

_WORDS: Words = {"positions": "rope", "qkv_bias": "qv", "layer_scale": 1e-5, "registers": 4}


def _vit(size: str, recipe: str) -> Variant:
    words = {"model.backbone.size": f"dinov3-{size}", "model.backbone.use_rel_pos": False}
    words |= {"train.init_weights": "dinov3_lvd1689m"}
    return Variant(f"vit-{size}", words, size=recipe)


study = Study(
    name="one-pretraining",
    question="Is a plain or a hierarchical backbone better, both pre-trained alike?",
    variants=(
        _vit("b", "vit-b"),
        _vit("s", "vit-s"),
        _vit("s+", "vit-s"),
        _vit("l", "vit-l"),
        *(Variant(f"convnext-{letter}", size=f"convnext-{letter}") for letter in "tsbl"),
    ),
    mini=(
        Variant(
            "vit",
            {f"model.backbone.{word}": value for word, value in _WORDS.items()}
            | {"train.init_weights": "none", "train.max_iter": 480},
            size="vit-mini",
        ),
        Variant("convnext", size="convnext-mini"),
    ),
)
