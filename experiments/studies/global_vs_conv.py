"""How should windows exchange information: not at all, by a few global blocks, by convs, by shifts?

    make ablation-global-vs-conv                        mini scale: 2 minutes a row and seed
    make ablation-global-vs-conv SCALE=coco SIZE=vit-b  Table 8a (vit-l: Table 2a)

Published (arXiv:2203.16527, Tables 8a and 2a; COCO val2017, Mask R-CNN, no relative positions):

    row      ViT-B box / mask AP   ViT-L box / mask AP
    none     48.9 / 43.9           52.9 / 47.2
    global   51.2 / 45.5           54.6 / 48.6
    conv     51.0 / 45.3           54.8 / 48.8
    shifted  50.1 / 44.8           54.0 / 47.9

The paper's conv row is bottleneck blocks for ViT-B and basic blocks for ViT-L, as the equal rows of
Tables 8b and 2b show; so is the row here. vit-mini's are basic, other sizes' bottleneck blocks.

Hardware of the paper: 64 GPUs, one image each. The zoo's ViT-B trains at 0.314 s an iteration
(A100): 184,375 iterations take 16 hours, ViT-L's at 0.603 s take 31.
"""

from experiments.studies import Study, Variant

_BASIC = {"model.backbone.conv_block": "basic"}

study = Study(
    name="global-vs-conv",
    question="How should windows exchange information: not at all, globally, by convs, by shifts?",
    words={"model.backbone.use_rel_pos": False},
    variants=(
        Variant(
            "none",
            {"model.backbone.propagation": "none"},
            published={"vit-b": "T8a:0", "vit-l": "T2a:0"},
        ),
        Variant(
            "global",
            {"model.backbone.propagation": "global"},
            published={"vit-b": "T8a:1", "vit-l": "T2a:1"},
        ),
        Variant(
            "conv",
            {"model.backbone.propagation": "conv"},
            words_of_size={"vit-l": _BASIC, "vit-mini": _BASIC},
            published={"vit-b": "T8a:2", "vit-l": "T2a:2"},
        ),
        Variant(
            "shifted",
            {"model.backbone.propagation": "shifted"},
            published={"vit-b": "T8a:3", "vit-l": "T2a:3"},
        ),
    ),
)
