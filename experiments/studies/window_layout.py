"""How should windows be laid out: how large, and with how many global blocks, where?

    make ablation-window-layout                        mini scale: 2 minutes a row and seed
    make ablation-window-layout SCALE=coco SIZE=vit-b  COCO, from MAE's weights (vit-l, vit-h too)

Tables 2c and 2d of arXiv:2203.16527 change the number and the place of global blocks at windows of
14 (studies `count`, `placement`). This study changes both with the window: larger windows know more
and need fewer global blocks, at other costs. EVA-02's detectors have windows of 16 at 1024 px, and
of 32 with more global blocks at 1536 px; Perception Encoder's have windows of 32 (arXiv:2303.11331,
arXiv:2504.13181).

    row                     windows, and global blocks
    window-14               of 14 tokens a side, 4 evenly: ViTDet's; 64 x 64 are filled up to 70
    window-7                of 7, 4 evenly; the same filling
    window-16, window-32    of 16 or 32, 4 evenly: no filling
    window-7-global-6       of 7, 6 evenly
    window-32-global-2      of 32, 2 evenly
    window-32-none          of 32, none
    window-16-first         of 16, the first 4 blocks
    window-16-last          of 16, the last 4
    window-16-registers     of 16, 4 evenly, and four register tokens (arXiv:2309.16588). Windows do
                            not read them: there is no word for registers of each window

At mini scale a map has 16 x 16 tokens and six blocks: windows of 2, 4 (the base), 5 (filled up to
20) and 8, three global blocks or 1, 2 or none, from random weights (480 iterations, as in
`encoder-recipe`).

No relative positions, as in the paper's Tables 1 to 4: weights have their tables for one window. No
paper has these rows, so there are no published figures beside them; those of windows of 14 are in
`count` and `placement`.

Hardware of the paper: 64 GPUs, one image each. By the released models' training times (A100) a row
of 4 global blocks takes 16, 31 and 42 hours for ViT-B, L and H.
"""

from experiments.studies import Study, Variant, Words

_FROM_SCRATCH: Words = {"train.init_weights": "none", "train.max_iter": 480}


def _row(window: int, name: str = "", start: Words | None = None, **words) -> Variant:
    words = {f"model.backbone.{word}": v for word, v in (dict(window_size=window) | words).items()}
    return Variant(f"window-{window}{name}", (start or {}) | words)


def _mini(window: int, name: str = "", **words) -> Variant:
    return _row(window, name, _FROM_SCRATCH, **words)


study = Study(
    name="window-layout",
    question="How large should windows be, with how many global blocks, and where?",
    words={"model.backbone.use_rel_pos": False},
    variants=(
        _row(14),
        _row(7),
        _row(16),
        _row(32),
        _row(7, "-global-6", count=6),
        _row(32, "-global-2", count=2),
        _row(32, "-none", propagation="none"),
        _row(16, "-first", placement="first"),
        _row(16, "-last", placement="last"),
        _row(16, "-registers", registers=4),
    ),
    mini=(
        _mini(4),
        _mini(2),
        _mini(5),
        _mini(8),
        _mini(2, "-global-2", count=2),
        _mini(8, "-global-1", count=1),
        _mini(8, "-none", propagation="none"),
        _mini(4, "-first", placement="first"),
        _mini(4, "-last", placement="last"),
        _mini(4, "-registers", registers=4),
    ),
)
