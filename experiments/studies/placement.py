"""Where should the global blocks be: first, last, or evenly spread?

    make ablation-placement                        mini scale: 2 minutes a row and seed
    make ablation-placement SCALE=coco SIZE=vit-b  Table 8c (vit-l: Table 2c)

Published (arXiv:2203.16527, Tables 8c and 2c; COCO val2017, Mask R-CNN, no relative positions):

    row    ViT-B box / mask AP   ViT-L box / mask AP
    none   48.9 / 43.9           52.9 / 47.2
    first  49.1 / 44.1           52.9 / 47.1    the first 4 blocks are global
    last   50.9 / 45.4           54.3 / 48.3
    even   51.2 / 45.5           54.6 / 48.6    the last of each of 4 subsets

vit-mini has 6 blocks, 3 of them global.

Hardware of the paper: 64 GPUs, one image each. By the released models' training times (A100), a row
takes 16 hours for ViT-B (0.314 s an iteration) and 31 for ViT-L (0.603 s).
"""

from experiments.studies import Study, Variant


def _global(placement: str, row: int) -> Variant:
    return Variant(
        placement,
        {"model.backbone.propagation": "global", "model.backbone.placement": placement},
        published={"vit-b": f"T8c:{row}", "vit-l": f"T2c:{row}"},
    )


study = Study(
    name="placement",
    question="Where should the global blocks be: first, last, or evenly spread?",
    words={"model.backbone.use_rel_pos": False},
    variants=(
        Variant(
            "none",
            {"model.backbone.propagation": "none"},
            published={"vit-b": "T8c:0", "vit-l": "T2c:0"},
        ),
        _global("first", 1),
        _global("last", 2),
        _global("even", 3),
    ),
)
