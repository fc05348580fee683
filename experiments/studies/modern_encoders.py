"""Encoders of today under one recipe: MAE, SAM, DINOv2, DINOv3, EVA-02, Perception Encoder.

    make ablation-modern-encoders                        mini scale: their words, no pre-training
    make ablation-modern-encoders SCALE=coco SIZE=vit-b  COCO, their weights (vit-l, vit-h as well)

    row             encoder, ViT-B (L)             weights
    mae             vit-b                          MAE, IN-1K: the base, ViTDet itself
    sam             vit-b                          SAM, SA-1B; without SAM's neck
    dinov2          dinov2-b                       DINOv2, LVD-142M
    dinov3          dinov3-b                       DINOv3, LVD-1689M
    eva02           eva02-b                        EVA-02, IN-21K (L: Merged-38M)
    pe-core         pe-core-b                      PE-Core
    pe-spatial      pe-spatial-b                   PE-Spatial
    eva02-b-released, eva02-l-released             Cascade, by the recipe of EVA-02's authors
    pe-core-released, pe-spatial-released          PE's G, by that of PE's (vit-h)

All rows but the "-released" have ViTDet's recipe (arXiv:2203.16527, Table 11, of the size that was
chosen), windows of 14 and 4 global blocks; relative positions where ViTDet's released configs have
them, which is where there are no rotary ones; EVA-02 has its own windows, of 16. It was found for
MAE: none of the others' authors trained a Mask R-CNN by it, and what is best for each is another
question (`SWEEP=optimizer.lr=0.5,1,2`, study `tuning`).

Published by their authors, of COCO val2017, 1024 px (box / mask AP):

    EVA-02-Det B    55.5 / 47.1    Cascade, IN-21K, 60,000 iterations of 128 images
    EVA-02-Det L    59.2 / 50.8    Cascade, Merged-38M, 60,000 of 144
    PE-core G       57.0 / 49.8    Mask R-CNN, 75 epochs
    PE-spatial G    57.8 / 50.3    Mask R-CNN, 36 epochs

from baaivision/EVA, EVA-02/det/README.md, and facebookresearch/perception_models,
apps/detection/README.md, whose configs the "-released" rows follow; EVA-02's are also
configs/coco/cascade_mask_rcnn_eva02_{b,l}.py, PE's configs/coco/mask_rcnn_pe_{core,spatial}_g.py.
EVA-02's inherit weight decay from a file that we have not seen: 0.1 here, as in ViTDet's. DINOv3's
detector is a DETR on a frozen encoder, so no figure of it stands here. analysis/paper/
todays_models.csv has more.

Files: docs/weights.md, "Where the configs find weights". DINOv3's are behind a form of its authors.

At small scale (docs/small.md) the base, vitdet, has the scale's own weights, DeiT-S's or MAE's;
beside it are dinov2, dinov3, pe-core and pe-spatial. EVA-02 is left out: its windows are of 16.

At mini scale there are no such weights: the rows have the words of each encoder (positions, MLPs,
LayerScale, registers, biases) on vit-mini, from random weights (480 iterations, as in
`encoder-recipe`), so they say what the architectures alone do.

Hardware of the paper: 64 GPUs, one image each. By the released models' training times (A100) a row
of ViTDet's recipe takes 16, 31 and 42 hours for ViT-B, L and H.
"""

from experiments.studies import Study, Variant, Words

_FROM_SCRATCH: Words = {"train.init_weights": "none", "train.max_iter": 480}
_GREY: Words = {"model.pixel_mean": [127.5] * 3, "model.pixel_std": [127.5] * 3}
_NO_REL_POS: Words = {"model.backbone.use_rel_pos": False}
# EVA-02's detectors: positions of 14 x 14 as in the files, places scaled to 16 tokens.
_EVA02_WORDS: Words = _NO_REL_POS | {
    "model.backbone.pretrain_img_size": 224,
    "model.backbone.positions": "learned+rope(unit=token,coordinates=window,length=16)",
}


def _of(encoder: str, weights: str, words: Words | None = None) -> Words:
    return {"model.backbone.size": encoder, "train.init_weights": weights} | (words or {})


def _row(name: str, base: Words, large: Words) -> Variant:
    of_size = {"vit-b": base, "vit-l": large}
    return Variant(name, words_of_size=of_size, only=tuple(of_size))


def _eva02_released(letter: str) -> Variant:
    """By a config of its own, as `_pe_released`."""
    size = f"eva02-{letter}"
    published = {size: f"today:eva02_{letter.upper()}_coco_bsl"}
    return Variant(
        f"{size}-released",
        size=size,
        published=published,
        detector="cascade_mask_rcnn",
        only=(f"vit-{letter}",),
    )


def _pe_released(kind: str, epochs: int) -> Variant:
    """By a config of its own."""
    size = f"pe-{kind}-g"
    published = {size: f"today:mask_rcnn_PE{kind}_G_coco{epochs}ep"}
    return Variant(f"pe-{kind}-released", size=size, published=published, only=("vit-h",))


def _small(name: str, weights: str, letters: str, words: Words | None = None) -> Variant:
    of_size = {f"vit-{letter}": _of(f"{name}-{letter}", weights, words) for letter in letters}
    return Variant(name, words_of_size=of_size, only=tuple(of_size))


def _mini(name: str, **words) -> Variant:
    words = {f"model.backbone.{word}": value for word, value in words.items()}
    return Variant(name, _FROM_SCRATCH | words)


_WINDOW = "learned+rope(unit=token,coordinates=window)"
_GATED = "swiglu(hidden=170,norm=true)"  # two thirds of 4 x 64: as many weights

study = Study(
    name="modern-encoders",
    question="Which encoder of today, under one recipe: EVA-02, DINOv3, PE, MAE, DINOv2, SAM?",
    variants=(
        Variant("mae", only=("vit-b", "vit-l", "vit-h")),
        _row("sam", *[{"train.init_weights": "sam_sa1b"}] * 2),
        _row(
            "dinov2",
            _of("dinov2-b", "dinov2_lvd142m"),
            _of("dinov2-l", "dinov2_lvd142m"),
        ),
        _row(
            "dinov3",
            _of("dinov3-b", "dinov3_lvd1689m", _NO_REL_POS),
            _of("dinov3-l", "dinov3_lvd1689m", _NO_REL_POS),
        ),
        _row(
            "eva02",
            _of("eva02-b", "eva02_in21k", _EVA02_WORDS),
            _of("eva02-l", "eva02_m38m", _EVA02_WORDS),
        ),
        _row(
            "pe-core",
            _of("pe-core-b", "pe_core", _NO_REL_POS | _GREY),
            _of("pe-core-l", "pe_core", _NO_REL_POS | _GREY),
        ),
        _row(
            "pe-spatial",
            _of("pe-spatial-b", "pe_spatial", _NO_REL_POS | _GREY),
            _of("pe-spatial-l", "pe_spatial", _NO_REL_POS | _GREY),
        ),
        _eva02_released("b"),
        _eva02_released("l"),
        _pe_released("core", 75),
        _pe_released("spatial", 36),
    ),
    small=(
        Variant("vitdet", only=("vit-s", "vit-b")),
        _small("dinov2", "dinov2_lvd142m", "sb"),
        _small("dinov3", "dinov3_lvd1689m", "sb", _NO_REL_POS),
        _small("pe-core", "pe_core", "sb", _NO_REL_POS | _GREY),
        _small("pe-spatial", "pe_spatial", "sb", _NO_REL_POS | _GREY),
    ),
    mini=(
        _mini("vitdet"),
        _mini("dinov2", layer_scale=1.0),
        _mini("dinov3", positions="rope", qkv_bias="qv", layer_scale=1e-5, registers=4),
        _mini("eva02", positions=_WINDOW, qkv_bias="qv", mlp=_GATED),
        _mini("pe", positions="learned+rope(unit=token,coordinates=window,axes=xy)", pre_norm=True),
    ),
)
