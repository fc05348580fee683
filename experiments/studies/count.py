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

_NONE = Variant(
    "none",
    {"model.backbone.propagation": "none"},
    published={"vit-b": "T8d:0", "vit-l": "T2d:0"},
)


def _global(count: int, published: int | None = None) -> Variant:
    rows = {"vit-b": f"T8d:{published}", "vit-l": f"T2d:{published}"}
    return Variant(
        str(count),
        {"model.backbone.propagation": "global", "model.backbone.count": count},
        published=rows if published else {},
    )


study = Study(
    name="count",
    question="How many blocks should be global?",
    words={"model.backbone.use_rel_pos": False},
    variants=(
        _NONE,
        _global(2, published=1),
        _global(4, published=2),
        Variant(
            "all",
            {"model.backbone.propagation": "global"},
            words_of_size={
                "vit-ti": {"model.backbone.count": 12},
                "vit-b": {"model.backbone.count": 12},
                "vit-l": {"model.backbone.count": 24},
                "vit-h": {"model.backbone.count": 32},
            },
            published={"vit-b": "T8d:3", "vit-l": "T2d:3"},
        ),
    ),
    mini=(_NONE, _global(1), _global(3), _global(6)),
)
