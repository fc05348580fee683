"""Does a plain backbone need a feature pyramid, and must it be an FPN?

    make ablation-feature-pyramid                        mini scale: 2 minutes a row and seed
    make ablation-feature-pyramid SCALE=coco SIZE=vit-b  Table 1 (vit-l as well)

Published (arXiv:2203.16527, Table 1 and section 4.1; COCO val2017, Mask R-CNN, 4 global blocks, no
relative positions):

    row           ViT-B box / mask AP   ViT-L box / mask AP
    none          47.8 / 42.5           51.2 / 45.4    one level, stride 16
    fpn-4stage    50.3 / 44.9           54.4 / 48.4    FPN on the maps of four stages (Figure 2a)
    fpn-last-map  50.9 / 45.3           54.6 / 48.5    FPN on the last map alone (Figure 2b)
    simple        51.2 / 45.5           54.6 / 48.6    no top-down path (Figure 2c)
    avg-pool                            54.5           1/4 map by deconv, the others by pooling it

For the row without a pyramid the paper does not say how the detector's anchors are chosen: here
those of all levels, 5 sizes of 3 shapes, lie on the one level there is.

Hardware of the paper: 64 GPUs, one image each. By the released models' training times (A100), a row
takes 16 hours for ViT-B (0.314 s an iteration) and 31 for ViT-L (0.603 s).
"""

from experiments.studies import Study, Variant, Words


def _pyramid(word: str, row: int) -> Variant:
    return Variant(
        word.replace("_", "-"),
        {"model.backbone.pyramid": word},
        published={"vit-b": f"T1:{row}B", "vit-l": f"T1:{row}L"},
    )


def _one_level(name: str, stride: int, sizes: list[int], shapes: int) -> Words:
    """A detector on a single level."""
    return {
        "model.backbone.pyramid": "none",
        "model.backbone.top_block": "none",
        "model.proposal_generator.in_features": [name],
        "model.proposal_generator.head.num_anchors": len(sizes) * shapes,
        "model.proposal_generator.anchor_generator.sizes": [sizes],
        "model.proposal_generator.anchor_generator.strides": [stride],
        "model.roi_heads.box_in_features": [name],
        "model.roi_heads.box_pooler.scales": [1 / stride],
        "model.roi_heads.mask_in_features": [name],
        "model.roi_heads.mask_pooler.scales": [1 / stride],
    }


_PYRAMIDS = (
    _pyramid("fpn_4stage", 1),
    _pyramid("fpn_last_map", 2),
    _pyramid("simple", 3),
    Variant("avg-pool", {"model.backbone.pyramid": "avg_pool"}, published={"vit-l": "T1:text"}),
)

_NONE = {"vit-b": "T1:0B", "vit-l": "T1:0L"}

study = Study(
    name="feature-pyramid",
    question="Does a plain backbone need a feature pyramid, and must it be an FPN?",
    words={"model.backbone.use_rel_pos": False},
    variants=(
        Variant(
            "none",
            _one_level("p4", 16, [32, 64, 128, 256, 512], shapes=3),
            published=_NONE,
        ),
        *_PYRAMIDS,
    ),
    # The mini encoder's patches are 8 px, its anchors square.
    mini=(
        Variant("none", _one_level("p3", 8, [12, 20, 32, 48, 72, 104], shapes=1), stands_for=_NONE),
        *_PYRAMIDS,
    ),
)
