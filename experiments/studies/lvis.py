"""Does it hold for many and rare categories (LVIS), and what is pre-training worth there?

    make ablation-lvis                        mini scale: 2 minutes a row
    make ablation-lvis SCALE=coco SIZE=vit-b VARIANTS=sup-in1k,sup-in21k,mae-in1k
                                              Table 10 (vit-l as well)
    make ablation-lvis SCALE=coco SIZE=vit-l VARIANTS=system-level
                                              Table 7 (vit-h as well)

LVIS v1, federated loss, repeat-factor sampling. Published (arXiv:2203.16527, Tables 10 and 7; LVIS
v1 val, box / mask / rare mask AP):

    row           ViT-B                ViT-L                ViT-H
    sup-in1k      37.2 / 34.9 / 26.4   38.3 / 36.0 / 26.7
    sup-in21k     38.7 / 36.3 / 28.8   42.1 / 39.5 / 34.3
    mae-in1k      40.1 / 38.1 / 29.1   46.1 / 43.5 / 35.3
    system-level                       51.2 / 46.0 / 34.3   53.4 / 48.1 / 36.9

system-level is Cascade at 1280 px with soft-NMS: the setup of Table 6, as the paper's text says
(its appendix A.2 says the settings of Table 5). The supervised rows keep the recipe of the MAE row
but for layer-wise decay: the paper prints none of their own for LVIS. Their weights are not the
paper's, see the study pretraining. Relative positions are on, as in the released LVIS configs,
whose AP is Table 10's within 0.1. swin-* and mvitv2-* are Mask R-CNN for Figure 4, which is plotted
only. Table 7's other rows are the figures of other works and are not run here.

At small scale (docs/small.md): the pre-trainings that there are for vit-s and vit-b.

At mini scale: what repeat-factor sampling and the federated loss do on a long-tailed mini set.

Hardware of the paper: 64 GPUs, one image each. By the released models' training times (A100) a row
takes 14 hours for ViT-B, 25 for ViT-L and 46 for ViT-H.
"""

from experiments.studies import Study, Variant, Words
from experiments.studies.pretraining import SUP_IN21K

_SIDE = 1280  # pixels
_NO_DECAY: Words = {"param_groups.layer_decay": 1.0}


def _supervised(name: str, row: int, weights: Words) -> Variant:
    return Variant(
        name,
        {**_NO_DECAY, **weights},
        published={"vit-b": f"T10:{row}B", "vit-l": f"T10:{row}L"},
        only=("vit-b", "vit-l"),
    )


_SYSTEM: Words = {
    "dataloader.image_size": _SIDE,
    "model.backbone.img_size": _SIDE,
    "test.soft_nms": "linear",
}
_SOFTMAX: Words = {
    "model.roi_heads.box_predictor.use_fed_loss": False,
    "model.roi_heads.box_predictor.use_sigmoid_ce": False,
}

study = Study(
    name="lvis",
    question="Does it hold for many and rare categories, and what is pre-training worth there?",
    dataset="lvis",
    variants=(
        _supervised("sup-in1k", 0, {"train.init_weights": "sup_in1k"}),
        _supervised("sup-in21k", 1, SUP_IN21K),
        Variant(
            "mae-in1k",
            published={"vit-b": "T10:2B", "vit-l": "T10:2L"},
            only=("vit-b", "vit-l", "vit-h"),
        ),
        Variant(
            "system-level",
            _SYSTEM,
            published={"vit-l": "T7:4", "vit-h": "T7:5"},
            detector="cascade_mask_rcnn",
            only=("vit-l", "vit-h"),
        ),
        *(
            Variant(size, size=size)
            for size in ("swin-b", "swin-l", "mvitv2-b", "mvitv2-l", "mvitv2-h")
        ),
    ),
    small=(
        Variant("sup-in1k", {**_NO_DECAY, "train.init_weights": "sup_in1k"}),
        Variant("sup-in21k", {**_NO_DECAY, **SUP_IN21K}, only=("vit-b",)),
        Variant("mae-in1k", {"train.init_weights": "mae_in1k"}, only=("vit-b",)),
        Variant("dinov2", {"train.init_weights": "dinov2_lvd142m"}),
    ),
    mini=(
        Variant("neither", {"dataloader.train.repeat_threshold": 0.0, **_SOFTMAX}),
        Variant("repeat-factor", _SOFTMAX),
        Variant("federated", {"dataloader.train.repeat_threshold": 0.0}),
        Variant("both"),
    ),
    seeds={"mini": 1, "small": 1, "coco": 1},
)
