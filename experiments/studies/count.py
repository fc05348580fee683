"""How many blocks should be global?

    make ablation-count                        mini scale: 2 minutes a row and seed
    make ablation-count SCALE=coco SIZE=vit-b  Table 8d (vit-l: Table 2d)

Published (arXiv:2203.16527, Tables 8d and 2d; COCO val2017, Mask R-CNN, no relative positions):

    row   ViT-B box / mask AP   ViT-L box / mask AP
    none  48.9 / 43.9           52.9 / 47.2
    2     50.7 / 45.2           54.4 / 48.5
    4     51.2 / 45.5           54.6 / 48.6
    all   50.4 / 45.1 (12)      55.1 / 48.9 (24)

The paper does not say which two blocks are global in its row 2: here the last of each half.
vit-mini has 6 blocks, so that its rows are none, 1, 3 and all.

Hardware of the paper: 64 GPUs, one image each. By the released models' training times (A100), a row
takes 16 hours for ViT-B (0.314 s an iteration) and 31 for ViT-L (0.603 s).
The paper trained its row of 24 global blocks with activation checkpointing, 2.2 times slower than
without propagation (Table 3): OVERRIDES="model.backbone.use_act_checkpoint=true".
"""

from experiments.studies import Study, Variant


def _rows(number: int) -> dict[str, str]:
    return {"vit-b": f"T8d:{number}", "vit-l": f"T2d:{number}"}


_NONE = Variant(
    "none",
    {"model.backbone.propagation": "none"},
    published=_rows(0),
)


def _global(count: int | str, **rows: dict[str, str]) -> Variant:
    return Variant(
        str(count),
        {"model.backbone.propagation": "global", "model.backbone.count": count},
        **rows,
    )


study = Study(
    name="count",
    question="How many blocks should be global?",
    words={"model.backbone.use_rel_pos": False},
    variants=(
        _NONE,
        _global(2, published=_rows(1)),
        _global(4, published=_rows(2)),
        _global("all", published=_rows(3)),
    ),
    # One of six as two of twelve; half of them as four, a block in each part; all as all.
    mini=(
        _NONE,
        _global(1, stands_for=_rows(1)),
        _global(3, stands_for=_rows(2)),
        _global(6, stands_for=_rows(3)),
    ),
)
