"""How much of a pre-trained encoder should train?

    make ablation-tuning                        mini scale: 2 minutes a row and seed, at most
    make ablation-tuning SCALE=small            a share of COCO, ViT-S, on one GPU
    make ablation-tuning SCALE=coco SIZE=vit-b  COCO (any plain ViT)

From all of it to nothing; neck and heads train in all rows:

    row           what of the encoder trains
    full          all, every layer at the same learning rate
    decay         all, the rate falling from layer to layer towards the image (arXiv:2203.16527,
                  Table 11): x 0.7 each for ViT-B, 0.8 for ViT-L, 0.9 for ViT-H
    last-third    the last third of its blocks: 4 of 12
    frozen        nothing
    frozen-views  nothing, on two fixed views of each image, whose features are computed once for
                  all runs (docs/tuning.md)

Initial weights are those of the scale's other studies: MAE's for ViT-B, L and H, DeiT's for ViT-S.
Learning rate and length are the recipe's, in all rows: what is frozen would stand a higher rate,
which SWEEP=optimizer.lr=1,2,4 looks for.

No paper has these rows on this detector with fixed heads, so there are no published figures beside
them; of layer-wise decay arXiv:2203.16527 (appendix A.2) says that it gains up to 0.3 AP, and
nothing with supervised pre-training.

At mini scale the encoder was trained with windows only (docs/mini.md); reach says whether its
blocks carry information across windows, which frozen ones do, too (docs/tuning.md).

Hardware of the paper: 64 GPUs, one image each. `make plan STUDY=tuning SCALE=coco` counts the hours
of each row.
"""

from experiments.studies import Study, Variant, Words


def _last(blocks: int) -> Words:
    return {"train.tuning": f"last:{blocks}"}


def _decay(factor: float) -> Words:
    return {"param_groups.layer_decay": factor}


_FROZEN: Words = {"train.tuning": "frozen"}

study = Study(
    name="tuning",
    question="How much of a pre-trained encoder should train: all of it, its end, nothing?",
    words={"model.backbone.use_rel_pos": False, **_decay(1.0)},
    variants=(
        Variant("full"),
        Variant("decay", _decay(0.7), words_of_size={"vit-l": _decay(0.8), "vit-h": _decay(0.9)}),
        Variant(
            "last-third",
            _last(4),
            words_of_size={"vit-mini": _last(2), "vit-l": _last(8), "vit-h": _last(11)},
        ),
        Variant("frozen", _FROZEN),
        Variant("frozen-views", _FROZEN | {"dataloader.train.views": 2}),
    ),
)
