"""Which pre-trained encoder's features are worth most to a detector that leaves them as they are?

    make ablation-frozen-probe                          mini scale: a minute a row and seed
    make ablation-frozen-probe SCALE=small              a tenth of COCO, ViT-S (SIZE=vit-b as well)
    make ablation-frozen-probe SCALE=coco DATASET= VAL= all of a set of your own

The encoder is frozen, each image has one fixed view, and the features of all are computed once and
kept (docs/tuning.md): a row costs the heads alone, which are few (the detector `probe` of
configs/common/detectors.py). So many encoders can be compared before one of them is fine-tuned, on
a few hundred images on a CPU too. What is good as it is need not be best after fine-tuning: of
MAE's variants, accuracy by a linear probe and fine-tuned do not go together (arXiv:2111.06377,
Table 1).

Rows are initial weights (docs/weights.md); all blocks attend globally, as in pre-training, at 512
px and with absolute positions resized. 400 iterations of 8 images, AdamW at 1e-3, meant for a few
hundred images and tuned on nothing: SWEEP=optimizer.lr=0.3,1,3 looks for each row's own.

At mini scale the rows are the weights that mini runs start from, trained with windows only, and
random ones, in the recipe of docs/mini.md.

Hardware of the paper: none, these rows are this suite's own. Two CPU cores:
results/benchmarks has what `make bench SUITE=probe` measured.
"""

from experiments.studies import Study, Variant, Words

_FROZEN: Words = {
    "model.backbone.use_rel_pos": False,
    "train.tuning": "frozen",
    "dataloader.train.views": 1,
}
_RECIPE: Words = {
    "dataloader.image_size": 512,
    "model.backbone.img_size": 512,
    "model.backbone.count": "all",
    "dataloader.train.total_batch_size": 8,
    "dataloader.train.loss_batch_size": 8,
    "dataloader.train.micro_batch_size": 8,
    "dataloader.test.batch_size": 8,
    "optimizer.lr": 1e-3,
    "param_groups.layer_decay": 1.0,
    "schedule.warmup_iters": 40,
    "train.max_iter": 400,
}
_UNIT: Words = {"model.pixel_mean": [127.5] * 3, "model.pixel_std": [127.5] * 3}
_SIZES = ("vit-s", "vit-b", "vit-l")


def _row(name: str, weights: str, sizes: tuple[str, ...] = _SIZES, words: Words | None = None):
    words = {**_RECIPE, "train.init_weights": weights, **(words or {})}
    return Variant(name, words, only=sizes)


study = Study(
    name="frozen-probe",
    question="Which encoder's features are worth most to a detector that leaves them as they are?",
    words=_FROZEN,
    detector="probe",
    sizes={"mini": "vit-mini", "small": "vit-s", "coco": "vit-s"},
    variants=(
        _row("none", "none"),
        _row("sup-in1k", "sup_in1k"),
        _row("sup-in21k", "sup_in21k", ("vit-b", "vit-l"), _UNIT),
        _row("mae-in1k", "mae_in1k", ("vit-b", "vit-l")),
        _row("dinov2", "dinov2_lvd142m"),
    ),
    mini=(
        Variant("none", {"train.init_weights": "none"}),
        Variant("windows", {"train.init_weights": "windows_mini"}),
    ),
)
