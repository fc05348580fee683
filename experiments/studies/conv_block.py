"""Which residual conv block carries information between windows best?

    make ablation-conv-block                        mini scale: 2 minutes a row and seed
    make ablation-conv-block SCALE=coco SIZE=vit-b  Table 8b (vit-l: Table 2b)

Published (arXiv:2203.16527, Tables 8b and 2b; COCO val2017, Mask R-CNN, no relative positions; a
conv block behind each of the four subsets of blocks):

    row         ViT-B box / mask AP   ViT-L box / mask AP
    none        48.9 / 43.9           52.9 / 47.2
    naive       50.6 / 45.2           54.3 / 48.3    one 3x3
    basic       50.7 / 45.2           54.8 / 48.8    two 3x3
    bottleneck  51.0 / 45.3           54.6 / 48.6    1x1, 3x3, 1x1

Hardware of the paper: 64 GPUs, one image each. By the released models' training times (A100), a row
takes 16 hours for ViT-B (0.314 s an iteration) and 31 for ViT-L (0.603 s).
"""

from experiments.studies import Study, Variant


def _conv(block: str, row: int) -> Variant:
    return Variant(
        block,
        {"model.backbone.propagation": "conv", "model.backbone.conv_block": block},
        published={"vit-b": f"T8b:{row}", "vit-l": f"T2b:{row}"},
    )


study = Study(
    name="conv-block",
    question="Which residual conv block carries information between windows best?",
    words={"model.backbone.use_rel_pos": False},
    variants=(
        Variant(
            "none",
            {"model.backbone.propagation": "none"},
            published={"vit-b": "T8b:0", "vit-l": "T2b:0"},
        ),
        _conv("naive", 1),
        _conv("basic", 2),
        _conv("bottleneck", 3),
    ),
)
