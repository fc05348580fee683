"""How should tokens know where they are: learned, tiled, fixed, relative or rotary positions?

    make ablation-positions                        mini scale: 2 minutes a row and seed
    make ablation-positions SCALE=coco SIZE=vit-b  COCO, from MAE's weights (vit-l, vit-h as well)

Every row is one choice away from the base, ViTDet's encoder with learned positions, 4 global blocks
and no relative ones:

    row           positions
    learned       of the pre-training's grid, resized to the map (arXiv:2203.16527)
    tiled         the same, repeated without change: a window of the pre-training's size reads what
                  it read there ("Window Attention is Bugged", arXiv:2311.05613)
    sincos2d      MAE's sines and cosines, which training leaves as they are (arXiv:2111.06377)
    rel-pos       learned ones, and decomposed relative ones in every block (arXiv:2112.01526)
    rope-map      learned ones, and rotary ones by the place on the map
    rope-window   the same, but in a block with windows by the place in the window, as EVA-02's and
                  Perception Encoder's detectors turn (arXiv:2303.11331, arXiv:2504.13181)
    rope-sides    as rope-map, by DINOv3's units, in which a side is always as long
                  (arXiv:2508.10104)

The three rotary rows differ in nothing but places: of the first two, one is counted on the map, the
other in the window, in units of the pre-training's tokens.

At full scale all rows start from MAE's weights, which were trained with fixed positions and have
never turned: the rows say what a choice does to fine-tuning, not what it does behind a pre-training
with that choice (the study `modern-encoders` has such encoders, with all else that differs).

At mini scale all start from random weights (480 iterations, as in `encoder-recipe`). Learned
positions have there as many places as the map, so two more rows have a grid of one window, 4 x 4:
"resized", by which "tiled" is to be judged, and "tiled" itself. "rope-alone" has no other positions
(DINOv3's).

No paper has these rows on this detector, so there are no published figures beside them.

Hardware of the paper: 64 GPUs, one image each; a row takes 16, 31 and 42 hours for ViT-B, L and H,
as the released models' training did (A100), relative positions included.
"""

from experiments.studies import Study, Variant, Words

_MAP = "learned+rope(unit=token)"
_WINDOW = "learned+rope(unit=token,coordinates=window)"
_ROWS: dict[str, Words] = {
    "sincos2d": {"positions": "sincos2d"},
    "rel-pos": {"use_rel_pos": True},
    "rope-map": {"positions": _MAP},
    "rope-window": {"positions": _WINDOW},
    "rope-sides": {"positions": "learned+rope"},
}
_FROM_SCRATCH: Words = {"train.init_weights": "none", "train.max_iter": 480}
_SMALL_GRID: Words = {"pretrain_img_size": 32}  # pixels: 4 x 4 patches of 8


def _of_backbone(words: Words) -> Words:
    return {f"model.backbone.{word}": value for word, value in words.items()}


study = Study(
    name="positions",
    question="How should tokens know where they are?",
    words={"model.backbone.use_rel_pos": False},
    variants=tuple(
        Variant(name, _of_backbone(words))
        for name, words in {
            "learned": {},
            "tiled": {"positions_resize": "tile"},
            **_ROWS,
        }.items()
    ),
    mini=tuple(
        Variant(name, _FROM_SCRATCH | _of_backbone(words))
        for name, words in {
            "learned": {},
            "resized": _SMALL_GRID,
            "tiled": _SMALL_GRID | {"positions_resize": "tile"},
            **_ROWS,
            "rope-alone": {"positions": "rope"},
        }.items()
    ),
)
