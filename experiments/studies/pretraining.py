"""What is pre-training worth to a plain backbone, and which?

    make ablation-pretraining                        mini scale: pre-trains first
    make ablation-pretraining SCALE=coco SIZE=vit-b  Table 4 (vit-l as well)

Published (arXiv:2203.16527, Table 4; COCO val2017, Mask R-CNN, 4 global blocks, no relative
positions; recipes of Table 11):

    row        ViT-B box / mask AP   ViT-L box / mask AP   epochs
    none       48.1 / 42.6           50.0 / 44.2           300, 200
    sup-in1k   47.6 / 42.4           49.6 / 43.8           50
    sup-in21k  47.8 / 42.6           50.6 / 44.8           50
    mae-in1k   51.2 / 45.5           54.6 / 48.6           100

docs/weights.md says which files the words of `train.init_weights` mean. MAE's are the paper's. The
paper's supervised ViTs were not released with it: in their place stand torchvision's IMAGENET1K_V1
and google/vit-*-in21k. So the sup-* rows answer the same question with other weights, and their AP
need not be the published one. To pre-train here instead: OVERRIDES="train.init_weights=recipe:mae"
(docs/pretraining.md).

At small scale (docs/small.md) rows have the table's proportions: 36, 6, 6 and 12 epochs of the
share, learning rates and decays as above. ViT-S has none, sup-in1k and, of no table, dinov2.

At mini scale `windows` is what all other studies start from there: an encoder that was trained on
the mini set with windows only (docs/mini.md). `sup` and `mae` are pre-trained by
configs/pretraining/{sup,mae}_vit_mini.py, once, on seed 0, for all seeds of the detector. The row
"windows-half" has half of the detection iterations.

Layer-wise learning-rate decay: none from random weights (the paper does not say) and from
supervised ones (appendix A.2: no gain seen).

Hardware of the paper: 64 GPUs, one image each. By the released ViT-B's training time (0.314 s an
iteration, A100) the rows take 48, 8, 8 and 16 hours; ViT-L's (0.603 s) 62, 15, 15 and 31.
"""

from typing import Any

from experiments.studies import EPOCHS_100, Study, Variant, Words

_MINI_ITERATIONS = 320
_SIZES = ("vit-b", "vit-l")  # of the paper's table


def _rows(number: int) -> dict[str, str]:
    return {"vit-b": f"T4:{number}B", "vit-l": f"T4:{number}L"}


_SUPERVISED: Words = {
    "optimizer.lr": 8e-5,
    "param_groups.layer_decay": 1.0,
    "train.max_iter": EPOCHS_100 // 2,
}
_SMALL_SUPERVISED = {k: v for k, v in _SUPERVISED.items() if k != "train.max_iter"}
_SMALL_SUPERVISED |= {"train.epochs": 6.0}
# These were pre-trained on pixels in -1..1.
SUP_IN21K: Words = {
    "train.init_weights": "sup_in21k",
    "model.pixel_mean": [127.5] * 3,
    "model.pixel_std": [127.5] * 3,
}
_RANDOM: Words = {
    "optimizer.lr": 1.6e-4,
    "optimizer.weight_decay": 0.2,
    "param_groups.layer_decay": 1.0,
    "train.init_weights": "none",
}
_NONE = Variant(
    "none",
    _RANDOM,
    words_of_size={
        "vit-b": {"train.max_iter": 3 * EPOCHS_100},
        "vit-l": {"train.max_iter": 2 * EPOCHS_100},
    },
    published=_rows(0),
    only=_SIZES,
)


def _mini(name: str, weights: str, iterations: int = _MINI_ITERATIONS, **words: Any) -> Variant:
    return Variant(name, {"train.init_weights": weights, "train.max_iter": iterations}, **words)


study = Study(
    name="pretraining",
    question="What is pre-training worth to a plain backbone, and which?",
    words={"model.backbone.use_rel_pos": False},
    variants=(
        _NONE,
        Variant(
            "sup-in1k",
            {**_SUPERVISED, "train.init_weights": "sup_in1k"},
            published=_rows(1),
            only=_SIZES,
        ),
        Variant(
            "sup-in21k",
            {**_SUPERVISED, **SUP_IN21K},
            published=_rows(2),
            only=_SIZES,
        ),
        Variant(
            "mae-in1k",
            {"train.init_weights": "mae_in1k"},
            published=_rows(3),
        ),
    ),
    small=(
        Variant("none", {**_RANDOM, "train.epochs": 36.0}, stands_for=_rows(0)),
        Variant(
            "sup-in1k",
            {**_SMALL_SUPERVISED, "train.init_weights": "sup_in1k"},
            stands_for=_rows(1),
        ),
        Variant(
            "sup-in21k",
            {**_SMALL_SUPERVISED, **SUP_IN21K},
            stands_for=_rows(2),
            only=("vit-b",),
        ),
        Variant(
            "mae-in1k",
            {"train.init_weights": "mae_in1k"},
            stands_for=_rows(3),
            only=("vit-b",),
        ),
        Variant("dinov2", {"train.init_weights": "dinov2_lvd142m"}),
    ),
    mini=(
        _mini("none", "none", stands_for=_rows(0)),
        _mini("sup", "recipe:sup", stands_for=_rows(1)),
        _mini("mae", "recipe:mae", stands_for=_rows(3)),
        _mini("windows", "windows_mini"),
        _mini("windows-half", "windows_mini", _MINI_ITERATIONS // 2),
    ),
)
