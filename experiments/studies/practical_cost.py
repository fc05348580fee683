"""What do the ways to propagate cost in practice: parameters, training memory, test time?

    make ablation-practical-cost                        mini scale: 2 minutes a row and seed
    make ablation-practical-cost SCALE=coco SIZE=vit-l  Table 3

Published (arXiv:2203.16527, Table 3; ViT-L, Mask R-CNN, no relative positions; one A100, memory per
GPU with one image, test time per image; ratios to the first row):

    row     box AP   params         training memory   test time
    none    52.9     1.00 (331 M)   1.00 (14.6 G)     1.00 (88 ms)
    conv    54.6     1.04           1.05              1.04          4 bottleneck blocks
    global  54.6     1.00           1.39              1.16          4 blocks
    all     55.1     1.00           3.34 (49 G)       1.86          24 blocks

The paper's 3.34 is an estimate: it trained that row with activation checkpointing, 2.2 times
slower. `make bench SUITE=table-3` measures memory and time of the encoders without training.
vit-mini has 6 blocks, 3 of them global.

Hardware of the paper: 64 GPUs, one image each. By the released ViT-L's training time (0.603 s an
iteration, A100) a row takes 31 hours.
"""

from experiments.studies import Study, Variant

study = Study(
    name="practical-cost",
    question="What do the ways to propagate cost: parameters, training memory, test time?",
    words={"model.backbone.use_rel_pos": False},
    variants=(
        Variant("none", {"model.backbone.propagation": "none"}, published={"vit-l": "T3:0"}),
        Variant("conv", {"model.backbone.propagation": "conv"}, published={"vit-l": "T3:1"}),
        Variant("global", {"model.backbone.propagation": "global"}, published={"vit-l": "T3:2"}),
        Variant(
            "all",
            {"model.backbone.propagation": "global", "model.backbone.count": "all"},
            published={"vit-l": "T3:3"},
        ),
    ),
    sizes={"mini": "vit-mini", "small": "vit-s", "coco": "vit-l"},
)
