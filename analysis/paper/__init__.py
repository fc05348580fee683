"""What is published about ViTDet (arXiv:2203.16527v2), and about detectors on encoders of today, as
data. Never this suite's own figures.

One tidy CSV per kind; `load(kind)` reads one:

- results: Tables 1 to 10, one line per printed row (`published()` has them by table and row).
- recipes: Table 11, the training recipe of each backbone on COCO.
- released_models: detectron2's 22 ViTDet models. `ap_*` are the released model's, `paper_ap_*` the
  paper's for the same setting, `diff_*` their difference. Times are of an A100, in s per image,
  `train_mem_gb` in GB per GPU; `act_checkpoint`: trained with activation checkpointing.
- released_configs: the configs of those models, inheritance resolved: iterations, learning rate x
  0.1 at `lr_milestone_1` and x 0.01 at `lr_milestone_2`, linear warm-up in iterations.
- settings: what all runs of a scope share (`all`, a backbone, a table), as text.
- prose: numbers that only the text or a project's pages give, by `key`; `relation` is =, <= or ~.
- reproductions: ViT-B Mask R-CNN as others trained it.
- todays_models: detectors on EVA-02 and Perception Encoder, MIMDet, and DINO in detrex, as the
  repositories of their authors print them, on COCO val2017 or LVIS v1 val. `encoder`: the size here
  that it is of.
- todays_encoders: parameters of named sizes as their authors print them, in their digits (DINOv2's,
  DINOv3's and EVA-02's in whole millions, Perception Encoder's in hundredths of a thousand million,
  pooling in front of the head included, SAM 3's in tens of millions).

Figures 3 to 5 repeat other numbers or print none: `figure(number)` derives their points.

Cells that are not published are empty, and NaN once loaded. Units are in the columns' names: `_m`
millions, `_t` 1e12, `_gb`, `_ms`; AP is 0..100, a ratio is to the table's first row. What the paper
calls FLOPs (`flops_t`) counts multiply-accumulates, for the whole detector and one 1024 x 1024
image. `verified`: "yes", two full transcriptions agree, or the public repository prints it;
"derived", computed from such numbers; what stands beside it in words is the only source.
`n_sources` counts the sources in `confirmed_by`, where brackets say which cells a source has:

- TXA, TXB: full transcriptions of arXiv v2. ZH: a bilingual one, without tables. N1: notes of
  saeedmehrang.github.io. N2: study notes in Chinese, with one wrong number.
- HI: Hiera, arXiv:2306.00989, Table 10. GL: GLEE, arXiv:2312.09158. VA: ViT-Adapter,
  arXiv:2205.08534. HY: hyper.ai/en/papers/2203.16527. TV: pytorch/vision issue 7630. SD:
  seetaresearch/seetadet. MV: detectron2 projects/MViTv2. D2: detectron2 projects/ViTDet @02b5c4e.
  MB: Meta AI blog, 1 August 2022.
- CALC: an analytic count of parameters and multiply-accumulates.

Known disagreements of the sources: the released Swin and MViTv2-H configs differ from Table 11; all
released ViT configs use relative positions, Tables 1 to 4 and 8 do not; Table 2a's "conv" is the
basic block, those of Tables 3 and 8a the bottleneck.
"""

from functools import cache
from pathlib import Path

import pandas as pd

from experiments.errors import UserError, unknown

_FOLDER = Path(__file__).parent
RECIPES = _FOLDER / "recipes.csv"
KINDS = tuple(sorted(path.stem for path in _FOLDER.glob("*.csv")))

POINT = ["model", "pretrain", "detector", "dataset"]
POINT += ["ap_box", "ap_mask", "ap_mask_rare", "params", "macs", "test_ms", "source"]


def load(kind: str) -> pd.DataFrame:
    """One of `KINDS`, e.g. "released_models": numbers as numbers, absent cells as NaN.

    `layerwise_lr_decay` is NaN also where none is used.

    Raises:
        UserError: there is no such kind.
    """
    if kind not in KINDS:
        raise unknown("kind of published data", kind, KINDS)
    na_values = {"layerwise_lr_decay": ["none"]}
    return pd.read_csv(_FOLDER / f"{kind}.csv", dtype={"row": str}, na_values=na_values)


@cache
def known() -> pd.DataFrame:
    """`published()`, and behind it `todays_models` by their names: "today:eva02_B_coco_bsl"."""
    todays = load("todays_models").assign(table="today", row=lambda rows: rows["name"])
    return pd.concat([published(), todays.set_index("today:" + todays["name"])])


@cache
def published() -> pd.DataFrame:
    """All rows, indexed by "table:row", e.g. "T8a:1": ap_box, ap_mask, model, strategy, ..."""
    frame = load("results")
    return frame.set_index(frame["table"] + ":" + frame["row"])


def figure(number: int) -> pd.DataFrame:
    """The points of Figure 3, 4 or 5 that have a printed number, one per row.

    Figure 3 plots the Mask R-CNN columns of Table 9. Of Figure 4, its counterpart on LVIS, the ViT
    points are in Table 10 (ViT-B, L) and in Meta's blog (ViT-H); no cost on LVIS is printed, so
    their costs are those of the same detector on COCO (Table 9). No point of Figure 5 is printed.

    Returns:
        model ("ViT-B"), pretrain ("1K, MAE"), detector, dataset ("coco" or "lvis"), ap_box,
        ap_mask, ap_mask_rare (0..100), params and macs (absolute), test_ms (ms per image), source.

    Raises:
        UserError: it is another figure.
    """
    if number == 3:
        points = _costs().query("detector == 'Mask R-CNN'").assign(dataset="coco")
        return points.reindex(columns=POINT).reset_index(drop=True)
    if number == 4:
        results, prose = load("results"), load("prose").set_index("key")
        points = results[(results["table"] == "T10") & (results["pretrain"] == "IN-1K, MAE")]
        huge = dict(
            model="ViT-H",
            detector="Mask R-CNN",
            ap_mask=prose.at["lvis_vit_h_mask", "value"],
            ap_mask_rare=prose.at["lvis_vit_h_rare", "value"],
            source=prose.at["lvis_vit_h_mask", "source"],
        )
        points = pd.concat([points, pd.DataFrame([huge])])
        return _with_costs(points.assign(pretrain="1K, MAE", dataset="lvis"))
    if number == 5:
        return pd.DataFrame(columns=POINT)
    raise UserError(f"no figure {number}: the paper's trade-off figures are 3, 4 and 5")


def released(dataset: str) -> pd.DataFrame:
    """The released models on "coco" or "lvis" as points, with the columns of `figure`.

    params and macs are of the same detector in Table 9 (COCO), test_ms the released model's own.

    Raises:
        UserError: there are none on this dataset.
    """
    models = load("released_models")
    models = models[models["dataset"] == dataset.upper()]
    if models.empty:
        raise unknown("dataset of released models", dataset, ("coco", "lvis"))
    points = models.assign(
        dataset=dataset,
        model=models["name"].str.removeprefix("ViTDet, "),
        pretrain=models["pretrain"].str.removeprefix("IN"),
    )
    test_ms = models["inference_time_s_per_im"] * 1000
    return _with_costs(points).assign(test_ms=test_ms.to_numpy())


def _costs() -> pd.DataFrame:
    """Table 9 in absolute units."""
    rows = load("results")
    rows = rows[rows["table"] == "T9"]
    return rows.assign(
        params=rows["params_m"] * 1e6, macs=rows["flops_t"] * 1e12, test_ms=rows["test_time_ms"]
    )


def _with_costs(points: pd.DataFrame) -> pd.DataFrame:
    """Points with the costs that Table 9 prints for the same detector; the order stays."""
    same = ["model", "pretrain", "detector"]
    costs = _costs()[[*same, "params", "macs", "test_ms"]]
    return points.merge(costs, on=same, how="left", validate="many_to_one").reindex(columns=POINT)
