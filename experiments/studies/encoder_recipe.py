"""What does each choice of the encoder's recipe do: stem, positions, norm, activation, tokens?

    make ablation-encoder-recipe                        mini scale: 2 minutes a row and seed
    make ablation-encoder-recipe SCALE=coco SIZE=vit-b  COCO, from random weights (vit-l as well)

Every row is one word away from the base: ViTDet's encoder with 4 global blocks, without relative
positions as in the paper's Tables 1 to 4. docs/encoder.md says what each word is and where it comes
from. No paper has these rows on this detector, so there are no published figures beside them.

    row                  differs from the base by
    stem-conv            early convolutions instead of one linear map (arXiv:2106.14881)
    positions-sincos2d   MAE's fixed sines and cosines instead of learned ones (arXiv:2111.06377)
    positions-none       no absolute positions: those of padding and of the convs remain
    rel-pos              relative positions in every block, as in the released configs
    norm-batch           batch norm over tokens instead of layer norm
    activation-relu6     min(max(x, 0), 6) instead of GELU
    mask-10              a tenth of the tokens left out in training
    window-7, window-16  windows of 7 or 16 tokens a side instead of 14
    registers-4          four register tokens beside the map (arXiv:2309.16588)

At small scale (docs/small.md) the base has windows of 7, so there the rows are window-4 and
window-8; 36 epochs of the share, three times other studies', as the paper's are for ViT-B.

At mini scale the base has the conv stem and windows of 4 (docs/mini.md), so there the rows are
stem-patchify, window-2 and window-8; of a window's 16 tokens mask-10 leaves out 2.

Initial weights: random, in all rows. MAE's fit no other stem or norm, and were trained with one
kind of positions and one activation: rows that start from them cannot be compared with rows that
cannot. The recipe is that of the row "none" of the study `pretraining` (arXiv:2203.16527, Tables 4
and 11): 300 epochs for ViT-B, 200 for ViT-L. So the rows say what a choice does to training from
scratch, not what it does behind pre-training with that choice.

Cost: MACs in the tables are those of evaluation. mask-10 trains at less, see `training_macs`.

Hardware of the paper: 64 GPUs, one image each. By the released ViT-B's training time (0.314 s an
iteration, A100) a row takes 48 hours; ViT-L's (0.603 s) 62.
"""

from experiments.studies import EPOCHS_100, Study, Variant, Words

_FROM_SCRATCH: Words = {
    "optimizer.lr": 1.6e-4,
    "optimizer.weight_decay": 0.2,
    "param_groups.layer_decay": 1.0,
    "train.init_weights": "none",
    "train.max_iter": 3 * EPOCHS_100,
}
_MINI_FROM_SCRATCH: Words = {"train.init_weights": "none", "train.max_iter": 480}
_SMALL_FROM_SCRATCH = {k: v for k, v in _FROM_SCRATCH.items() if k != "train.max_iter"}
_SMALL_FROM_SCRATCH |= {"train.epochs": 36.0}
# At all scales.
_ROWS: dict[str, Words] = {
    "positions-sincos2d": {"positions": "sincos2d"},
    "positions-none": {"positions": "none"},
    "rel-pos": {"use_rel_pos": True},
    "norm-batch": {"block_norm": "batch"},
    "activation-relu6": {"activation": "relu6"},
    "mask-10": {"mask_ratio": 0.1},
    "registers-4": {"registers": 4},
}


def _of_backbone(words: Words) -> Words:
    return {f"model.backbone.{word}": value for word, value in words.items()}


def _coco(name: str, words: Words) -> Variant:
    """For the sizes that the recipe is of: learning rate and length are of their batch of 64."""
    of_size = {"vit-b": {}, "vit-l": {"train.max_iter": 2 * EPOCHS_100}}
    words = _FROM_SCRATCH | _of_backbone(words)
    return Variant(name, words, words_of_size=of_size, only=tuple(of_size))


study = Study(
    name="encoder-recipe",
    question="What does each choice of the encoder's recipe do: stem, positions, norm, tokens?",
    words={"model.backbone.use_rel_pos": False},
    variants=tuple(
        _coco(name, words)
        for name, words in {
            "base": {},
            "stem-conv": {"stem": "conv"},
            "window-7": {"window_size": 7},
            "window-16": {"window_size": 16},
            **_ROWS,
        }.items()
    ),
    small=tuple(
        Variant(name, _SMALL_FROM_SCRATCH | _of_backbone(words))
        for name, words in {
            "base": {},
            "stem-conv": {"stem": "conv"},
            "window-4": {"window_size": 4},
            "window-8": {"window_size": 8},
            **_ROWS,
        }.items()
    ),
    mini=tuple(
        Variant(name, _MINI_FROM_SCRATCH | _of_backbone(words))
        for name, words in {
            "base": {},
            "stem-patchify": {"stem": "patchify"},
            "window-2": {"window_size": 2},
            "window-8": {"window_size": 8},
            **_ROWS,
        }.items()
    ),
)
