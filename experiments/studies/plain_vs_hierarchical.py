"""Can a plain backbone compete with hierarchical ones?

    make ablation-plain-vs-hierarchical              mini scale: 2 minutes a row
    make ablation-plain-vs-hierarchical SCALE=coco VARIANTS=vit-b,swin-b,mvitv2-b

Published (arXiv:2203.16527, Tables 5 and 9; COCO val2017, with relative positions, box / mask AP):

    model         pre-training   Mask R-CNN    Cascade
    swin-b-in1k   IN-1K, sup     50.1 / 44.5   52.7 / 45.5
    swin-b        IN-21K, sup    51.4 / 45.4   54.0 / 46.5
    swin-l        IN-21K, sup    52.4 / 46.2   54.8 / 47.3
    mvitv2-b-in1k IN-1K, sup     52.4 / 46.7   54.7 / 47.5
    mvitv2-l-in1k IN-1K, sup     53.2 / 47.1   55.2 / 47.7
    mvitv2-b      IN-21K, sup    53.1 / 47.4   55.6 / 48.1
    mvitv2-l      IN-21K, sup    53.6 / 47.5   55.7 / 48.3
    mvitv2-h      IN-21K, sup    54.1 / 47.7   55.8 / 48.3
    vit-b         IN-1K, MAE     51.6 / 45.9   54.0 / 46.7
    vit-l         IN-1K, MAE     55.6 / 49.2   57.6 / 49.8
    vit-h         IN-1K, MAE     56.7 / 50.1   58.7 / 50.9

A row is a model and, behind its name, the detector if it is not Mask R-CNN: "-cascade", or
"-retinanet" for Figure 5. Recipes are Table 11's. Where a released config has another one, a row
"-released" has that: Swin with learning rate 4e-5 and drop path 0.4 (Table 11: 1e-4 for B, 8e-5 for
L, and 0.3), MViTv2-H with learning rate 1.6e-4 (8e-5). Their released models reach 53.9 / 46.2
(Swin-B), 55.0 / 47.2 (Swin-L) and 55.9 / 48.3 (MViTv2-H).

At small scale (docs/small.md): the rows of the three B models, but for those "-released".

At mini scale: a ViT of six blocks, a Swin and an MViTv2 of eight, with about as many parameters,
all from random weights.

Hardware of the paper: 64 GPUs, one image each. By the released models' training times (A100; with
Cascade where only that was released) a row takes 16, 31 and 42 hours for ViT-B, L and H, 10 and 13
for Swin-B and L, 24, 22 and 31 for MViTv2-B, L and H.
"""

from experiments.studies import Study, Variant, Words

_DETECTORS = {"": "mask_rcnn", "-cascade": "cascade_mask_rcnn", "-retinanet": "retinanet"}


def _rows(
    name: str, size: str, table9: int, table5: int | None = None, words: Words | None = None
) -> list[Variant]:
    """A model under Mask R-CNN and Cascade, and those of Table 5 under RetinaNet."""
    rows = []
    for suffix, detector in _DETECTORS.items():
        column = {"": "m", "-cascade": "c"}.get(suffix)
        printed = [f"T9:{table9}{column}"] if column else []
        if column and table5 is not None:
            printed.insert(0, f"T5:{table5}{column}")
        if printed or table5 is not None:
            published = {size: " ".join(printed)} if printed else {}
            rows.append(
                Variant(
                    name + suffix, words or {}, published=published, size=size, detector=detector
                )
            )
    return rows


def _released(size: str, words: Words) -> Variant:
    return Variant(f"{size}-cascade-released", words, size=size, detector="cascade_mask_rcnn")


_IN1K: Words = {"train.init_weights": "sup_in1k"}
# Trained as the others are: configs/mini/mask_rcnn_swin_mini.py.
_MINI_VIT: Words = {
    "model.backbone.use_rel_pos": True,
    "train.init_weights": "none",
    "train.max_iter": 480,
}
_SWIN_RELEASED = {"optimizer.lr": 4e-5, "model.backbone.bottom_up.drop_path_rate": 0.4}

_ROWS = (
    *_rows("vit-b", "vit-b", 8, 5),
    *_rows("vit-l", "vit-l", 9, 6),
    *_rows("vit-h", "vit-h", 10, 7),
    *_rows("swin-b-in1k", "swin-b", 0, words=_IN1K),
    *_rows("swin-b", "swin-b", 1, 0),
    *_rows("swin-l", "swin-l", 2, 1),
    *_rows("mvitv2-b-in1k", "mvitv2-b", 3, words=_IN1K),
    *_rows("mvitv2-l-in1k", "mvitv2-l", 4, words=_IN1K),
    *_rows("mvitv2-b", "mvitv2-b", 5, 2),
    *_rows("mvitv2-l", "mvitv2-l", 6, 3),
    *_rows("mvitv2-h", "mvitv2-h", 7, 4),
)

study = Study(
    name="plain-vs-hierarchical",
    question="Can a plain backbone compete with hierarchical ones?",
    variants=(
        *_ROWS,
        _released("swin-b", _SWIN_RELEASED),
        _released("swin-l", _SWIN_RELEASED),
        _released("mvitv2-h", {"optimizer.lr": 1.6e-4}),
    ),
    small=tuple(row for row in _ROWS if row.size in ("vit-b", "swin-b", "mvitv2-b")),
    mini=tuple(
        Variant(
            size.removesuffix("-mini") + suffix,
            _MINI_VIT if size == "vit-mini" else {},
            size=size,
            detector=detector,
        )
        for suffix, detector in _DETECTORS.items()
        for size in ("vit-mini", "swin-mini", "mvitv2-mini")
    ),
    seeds={"mini": 1, "small": 1, "coco": 1},
)
