"""How far does the plain backbone get with everything switched on?

    make ablation-system-level                        mini scale: one training, three evaluations
    make ablation-system-level SCALE=coco SIZE=vit-b  Table 6 (vit-l, vit-h, mvitv2-l, mvitv2-h)

Cascade Mask R-CNN, relative positions, 1280 px, soft-NMS. Published (arXiv:2203.16527, Table 6;
COCO val2017, box / mask AP):

    size      single-scale   multi-scale
    vit-b     56.0 / 48.0    57.3 / 49.4
    vit-l     59.6 / 51.1    60.4 / 52.2
    vit-h     60.4 / 52.0    61.3 / 53.1
    mvitv2-l  56.9 / 48.6    58.7 / 50.5    copied by the paper from the original work
    mvitv2-h  57.1 / 48.8    58.4 / 50.1    copied by the paper from the original work

The table's other rows (Swin-L and SwinV2-L with HTC++, CBNetV2, UViT) are the figures of other
works with detectors of their own; they stand in the table as published and are not run here.

At small scale (docs/small.md) all sides are half of those: 640 px, short edges of 300 to 540.

The rows share one training: the second is an evaluation of the first's weights. The paper states
neither the kind of soft-NMS nor the sizes of its multi-scale test: linear with IoU 0.3 (the
default of arXiv:1704.04503), and short edges of 600 to 1080 px, each also flipped, are this suite's
choice: images are trained with long edges of 1280 px, which of a 4:3 image are 800 to 1440 then.

Hardware of the paper: 64 GPUs, one image each. The released Cascade models, of 1024 px, take 19, 33
and 44 hours for ViT-B, L and H by their training times (A100); 1280 px have 1.6 times the tokens.
"""

from experiments.studies import Study, Variant, Words

_SIDE = 1280  # pixels
_VIT: Words = {"model.backbone.img_size": _SIDE}
_MVIT: Words = {"model.backbone.square_pad": _SIDE}
_OF_SIZE = {"vit-b": _VIT, "vit-l": _VIT, "vit-h": _VIT, "mvitv2-l": _MVIT, "mvitv2-h": _MVIT}
_AT_SIDE = {"dataloader.image_size": _SIDE}
_SOFT_NMS = {"test.soft_nms": "linear"}
_SIZES = [600, 720, 840, 960, 1080]  # short edges, pixels


_HALF: Words = {
    "dataloader.image_size": _SIDE // 2,
    "model.backbone.img_size": _SIDE // 2,
    "test.tta_max_size": 960,
    **_SOFT_NMS,
}


def _published(kind: str) -> dict[str, str]:
    rows = {"vit-b": 7, "vit-l": 8, "vit-h": 9, "mvitv2-l": 1, "mvitv2-h": 2}
    return {size: f"T6:{row}{kind}" for size, row in rows.items()}


study = Study(
    name="system-level",
    question="How far does the plain backbone get with everything switched on?",
    detector="cascade_mask_rcnn",
    variants=(
        Variant(
            "single-scale",
            {**_AT_SIDE, **_SOFT_NMS},
            _OF_SIZE,
            _published("s"),
            only=tuple(_OF_SIZE),
        ),
        Variant(
            "multi-scale",
            {**_AT_SIDE, **_SOFT_NMS, "test.tta_sizes": _SIZES, "test.tta_max_size": 1920},
            _OF_SIZE,
            _published("m"),
            only=tuple(_OF_SIZE),
        ),
    ),
    small=(
        Variant("single-scale", _HALF),
        Variant("multi-scale", {**_HALF, "test.tta_sizes": [s // 2 for s in _SIZES]}),
    ),
    mini=(
        Variant("hard-nms"),
        Variant("soft-nms", _SOFT_NMS),
        Variant("multi-scale", {**_SOFT_NMS, "test.tta_sizes": [112, 128, 144]}),
    ),
)
