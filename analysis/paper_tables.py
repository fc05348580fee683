"""Every table of the paper: the published figures, and beside them what this suite computes,
measures and trains. The two are never mixed in a column; what was not done is an empty cell."""

import json
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from omegaconf import DictConfig
from rich.console import Console

from experiments import ROOT, records, studies
from experiments.costs import environment
from experiments.costs.detector_cost import detector_cost
from experiments.recipe import identity, resolved
from experiments.studies import Study, Variant

from . import figures
from .paper import published
from .tables import KINDS
from .text import grid, number, spread

TITLES = {
    "T1": "Table 1: feature pyramids on a plain backbone",
    "T2a": "Table 2a: cross-window propagation",
    "T2b": "Table 2b: residual conv blocks",
    "T2c": "Table 2c: placement of global blocks",
    "T2d": "Table 2d: number of global blocks",
    "T3": "Table 3: practical cost of propagation",
    "T4": "Table 4: pre-training",
    "T5": "Table 5: plain and hierarchical backbones",
    "T6": "Table 6: system level, COCO",
    "T7": "Table 7: system level, LVIS",
    "T8a": "Table 8a: cross-window propagation",
    "T8b": "Table 8b: residual conv blocks",
    "T8c": "Table 8c: placement of global blocks",
    "T8d": "Table 8d: number of global blocks",
    "T9": "Table 9: plain and hierarchical backbones, measurements",
    "T10": "Table 10: pre-training, LVIS",
}
_NOTE = """\
Columns that begin with "paper" are published figures (arXiv:2203.16527v2; COCO val2017, LVIS v1 val
in Tables 7 and 10). All others are this suite's own: params and MACs are counted (docs/cost.md) for
the whole detector and for its encoder, on one square image of "px" pixels, with 1,000 proposals and
100 masks (300 on LVIS); what the paper calls FLOPs is MACs. "vs paper" is ours over the paper's,
minus 1 (docs/cost.md says why MViTv2-L differs); ratios are to the table's first row. AP "coco" is
the paper's recipe at full scale; what was trained at another scale is never comparable with the
paper's and is not here. Measured columns name the device. An empty cell was not trained or
measured, or is not printed in the paper. Rows without params are other works' systems, quoted by
the paper.
"""
_WORDS = ("model", "strategy", "pretrain", "detector", "test_mode")
_SCALE = "coco"  # AP of no other stands beside the paper's
_ALWAYS = "box AP, coco"
# What a run's result has in its config beside the setting of a row.
_NOT_SETTING = (
    "train.seed",
    "train.amp",
    "train.threads",
    "dataloader.train.dataset",
    "dataloader.test.dataset",
)
# Images to train and evaluate on.
_IMAGES = {"coco": [118287, 5000], "lvis": [100170, 19809]}
_PUBLISHED = ("ap_", "params_", "flops_t", "train_mem_", "test_time_")
# What the benchmark of Table 3's setting calls its rows.
_BENCHMARK_ROWS = {
    "window only": "none",
    "4 conv": "conv",
    "4 global": "global",
    "all global": "all",
}


class Setting(NamedTuple):
    """What a row of the paper is in this suite."""

    study: Study
    variant: Variant
    size: str


def settings() -> dict[str, Setting]:
    """Row of the paper ("T8a:1") -> the first study's row with its setting."""
    found: dict[str, Setting] = {}
    for name in studies.files():
        study = studies.find(name)
        for variant in study.variants:
            for size, rows in variant.published.items():
                for row in published().index.intersection(rows.split()):
                    found.setdefault(row, Setting(study, variant, size))
    return found


def paper_tables(rows: "Rows") -> pd.DataFrame:
    """One line per printed row of Tables 1 to 10, in the paper's order.

    Columns: `paper_*` as of `analysis.paper`; study, variant and size, what runs it; params, macs,
    activations, encoder_params, encoder_macs, px; params_vs_paper, macs_vs_paper, params_ratio (to
    the table's first row); coco_ap_{box,mask,mask_rare}, coco_ap_{box,mask}_std and coco_seeds;
    train_memory_ratio, test_time_ratio (to window-only) and measured_on.
    """
    found = settings()
    lines = []
    for where, row in published().iterrows():
        line = {k: row[k] for k in ("table", "row", "model", "pretrain", "detector", "strategy")}
        line["test_mode"] = row["test_mode"]
        line |= {f"paper_{k}": row[k] for k in row.index if k.startswith(_PUBLISHED)}
        if where in found:
            line |= rows.costs(found[where]) | rows.trained(found[where])
        lines.append(line)
    table = pd.DataFrame(lines)
    table["params_vs_paper"] = table["params"] / (table["paper_params_m"] * 1e6) - 1
    table["macs_vs_paper"] = table["macs"] / (table["paper_flops_t"] * 1e12) - 1
    is_3 = table["table"] == "T3"
    table.loc[is_3, "params_ratio"] = table["params"] / table.loc[is_3, "params"].iloc[0]
    return _with_measured(table, rows.root)


_DETECTORS = {
    "mask_rcnn": "Mask R-CNN",
    "cascade_mask_rcnn": "Cascade Mask R-CNN",
    "retinanet": "RetinaNet",
}


def points(rows: "Rows") -> pd.DataFrame:
    """Our points of Figures 3 to 5 at full scale, with the columns of `analysis.figures.OURS`."""
    lines = []
    for name in ("plain-vs-hierarchical", "lvis"):
        study = studies.find(name)
        for variant in study.variants:
            plain = variant.name == "mae-in1k"
            if variant.name.endswith("-released") or not (plain or variant.size):
                continue
            for size in (variant.size,) if variant.size else ("vit-b", "vit-l", "vit-h"):
                setting = Setting(study, variant, size)
                found = rows.costs(setting) | rows.trained(setting)
                found = {k.removeprefix("coco_"): v for k, v in found.items()}
                sup = "1K, sup" if "-in1k" in variant.name else "21K, sup"
                lines.append(
                    dict(
                        found,
                        model=published_name(size),
                        pretrain="1K, MAE" if size.startswith("vit-") else sup,
                        detector=_DETECTORS[variant.detector or study.detector],
                        dataset=study.dataset,
                    )
                )
    return pd.DataFrame(lines).reindex(columns=[*figures.OURS, "ap_mask_std"])


def published_name(size: str) -> str:
    """What the paper calls a model size: "ViT-B" of "vit-b"."""
    family, letter = size.rsplit("-", 1)
    names = {"vit": "ViT", "swin": "Swin", "mvitv2": "MViTv2"}
    return f"{names[family]}-{letter.upper()}"


class Rows:
    """Costs and results of settings, each looked up once.

    Args:
        root: of the project, for results/ that were kept.
        runs: folder of runs; its records come before results/.
    """

    def __init__(self, root: Path = ROOT, runs: Path = Path("runs")):
        self.root = root
        self.configs: dict[tuple, DictConfig] = {}
        self.costs_of: dict[str, dict] = {}
        self.records = records.load(runs / _SCALE)
        if len(self.records):
            self.records["setting"] = self.records["config"].map(_setting)
            # Runs on a user's own data are no rows of the paper.
            self.records = self.records[self.records["data"].map(_is_the_papers)]

    def config(self, setting: Setting) -> DictConfig:
        study, variant, size = setting
        key = (study.name, variant.name, size)
        if key not in self.configs:
            self.configs[key] = resolved.resolve(study, variant, _SCALE, size, {})
        return self.configs[key]

    def costs(self, setting: Setting) -> dict:
        study, variant, size = setting
        cfg = self.config(setting)
        model = json.dumps(identity.plain_config(cfg)["model"])
        if model not in self.costs_of:
            cost = detector_cost(cfg.model)
            self.costs_of[model] = dict(
                params=cost.detector.params,
                macs=cost.detector.macs,
                activations=cost.detector.activations,
                encoder_params=cost.encoder.params,
                encoder_macs=cost.encoder.macs,
                px=cost.size[0],
            )
        return dict(study=study.name, variant=variant.name, size=size) | self.costs_of[model]

    def trained(self, setting: Setting) -> dict:
        """AP of the setting at full scale: from records, or else from the results kept."""
        frame = self.records
        if len(frame):
            frame = frame[frame["setting"] == _setting(identity.plain_config(self.config(setting)))]
        if frame.empty:
            return self._kept(setting)
        frame = frame.drop_duplicates("seed")
        found = {"coco_seeds": len(frame)}
        for kind in KINDS:
            aps = frame.get(f"ap_{kind}", pd.Series(dtype=float))
            found[f"coco_ap_{kind}"], found[f"coco_ap_{kind}_std"] = aps.mean(), aps.std()
        if "apr_mask" in frame:
            found["coco_ap_mask_rare"] = frame["apr_mask"].mean()
        return found

    def _kept(self, setting: Setting) -> dict:
        study, variant, size = setting
        file = self.root / "results" / _SCALE / study.name / "table.csv"
        if not file.is_file():
            return {}
        kept = pd.read_csv(file, dtype={"variant": str}).dropna(subset=["ap_box"])
        kept = kept[(kept["variant"] == variant.name) & (kept["size"] == size)]
        if kept.empty:
            return {}
        kept = kept.iloc[0]
        names = {"seeds": "seeds", "apr_mask": "ap_mask_rare"}
        names |= {f"ap_{kind}{end}": f"ap_{kind}{end}" for kind in KINDS for end in ("", "_std")}
        return {f"coco_{name}": kept[column] for column, name in names.items() if column in kept}


def _is_the_papers(data: dict) -> bool:
    return list(data.get("images", ())) == _IMAGES.get(data.get("kind"))


def _setting(plain: dict) -> str:
    """A run's config without what does not belong to a row's setting."""
    plain = identity.without_keys(plain, (*records.NOT_IDENTITY, *_NOT_SETTING))
    return json.dumps(plain, sort_keys=True)


def _with_measured(table: pd.DataFrame, root: Path) -> pd.DataFrame:
    """Table 3's ratios as `make bench SUITE=table-3` measured them on the first device there is."""
    table[["train_memory_ratio", "test_time_ratio", "measured_on"]] = None
    for file in sorted((root / "results/benchmarks").glob("*/over-window-only.csv")):
        measured = pd.read_csv(file)
        measured = measured[(measured["module"] == "detector") & (measured["size"] == "vit-l")]
        measured = measured[measured["implementation"] == "fused"]
        for mode, ratio, column in (
            ("train", "memory_ratio", "train_memory_ratio"),
            ("forward", "time_ratio", "test_time_ratio"),
        ):
            for _, row in measured[measured["mode"] == mode].iterrows():
                here = table["variant"] == _BENCHMARK_ROWS.get(row["blocks"])
                here &= table["table"] == "T3"
                table.loc[here, [column, "measured_on"]] = row[ratio], file.parent.name
        if table["measured_on"].notna().any():
            break
    return table


# ---- As text ------------------------------------------------------------------------------------


def caption(part: pd.DataFrame) -> str:
    """What all rows of a table share, e.g. "ViT-L, Mask R-CNN"."""
    shared = (part[c].iloc[0] for c in _WORDS if part[c].nunique(dropna=False) == 1)
    return ", ".join(word for word in shared if not pd.isna(word))


def cells(part: pd.DataFrame) -> pd.DataFrame:
    """A table as text cells, units in the headers.

    What all rows share is in the caption; columns in which all cells are empty are left out, except
    those of our box AP.
    """
    words = [c for c in _WORDS if part[c].nunique(dropna=False) > 1]
    lines = []
    for _, r in part.iterrows():
        line = {c.replace("_", " "): "" if pd.isna(r[c]) else r[c] for c in words}
        for kind in KINDS:
            line[f"paper {kind} AP"] = number(r[f"paper_ap_{kind}"])
        line["paper rare AP"] = number(r["paper_ap_mask_rare"])
        for kind in KINDS:
            ap = f"coco_ap_{kind}"
            line[f"{kind} AP, coco"] = spread(r.get(ap), r.get(f"{ap}_std"))
        line["rare AP, coco"] = number(r.get("coco_ap_mask_rare"))
        line["seeds, coco"] = number(r.get("coco_seeds"), ",.0f")
        line["paper params M"] = number(r["paper_params_m"], ",.0f")
        line["params M"] = number(r["params"], ".1f", 1e6)
        line["vs paper"] = number(r["params_vs_paper"], "+.1%")
        line["paper params ratio"] = number(r["paper_params_ratio"], ".2f")
        line["params ratio"] = number(r["params_ratio"], ".2f")
        line["encoder params M"] = number(r["encoder_params"], ".1f", 1e6)
        line["paper TFLOPs"] = number(r["paper_flops_t"])
        line["TMACs"] = number(r["macs"], ".3f", 1e12)
        line["TMACs vs paper"] = number(r["macs_vs_paper"], "+.1%")
        line["encoder TMACs"] = number(r["encoder_macs"], ".3f", 1e12)
        line["activations M"] = number(r["activations"], ",.0f", 1e6)
        line["px"] = number(r["px"], ",.0f")
        line["paper train GB"] = number(r["paper_train_mem_gb"])
        line["paper memory ratio"] = number(r["paper_train_mem_ratio"], ".2f")
        line["memory ratio"] = number(r["train_memory_ratio"], ".2f")
        line["paper test ms"] = number(r["paper_test_time_ms"], ",.0f")
        line["paper time ratio"] = number(r["paper_test_time_ratio"], ".2f")
        line["time ratio"] = number(r["test_time_ratio"], ".2f")
        line["measured on"] = "" if pd.isna(r["measured_on"]) else r["measured_on"]
        lines.append(line)
    text = pd.DataFrame(lines)
    return text[[c for c in text if c == _ALWAYS or text[c].any()]]


def provenance() -> list[str]:
    """Command, versions and commit, one line each."""
    versions = ", ".join(f"{k} {v}" for k, v in environment.versions().items())
    return [
        "command: `make paper-tables`",
        f"versions: {versions}",
        f"commit: {environment.git_commit()}",
    ]


def write(table: pd.DataFrame, folder: Path) -> list[Path]:
    """tables.csv (everything, tidy), tables.md and tables.tex (one table per printed table)."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"tables.{suffix}" for suffix in ("csv", "md", "tex")]
    table.to_csv(files[0], index=False)
    markdown = ["# The paper's tables", "", _NOTE]
    latex = ["% Needs \\usepackage{booktabs}.", *(f"% {line}" for line in _NOTE.splitlines())]
    for name, title in TITLES.items():
        part = table[table["table"] == name]
        shown = cells(part)
        markdown += [f"## {title}", "", caption(part), ""]
        markdown += [grid(shown, "pipe"), ""]
        latex += ["", f"% {title}. {caption(part)}"]
        latex += [grid(shown, "latex_booktabs")]
    markdown += [*(f"- {line}" for line in provenance()), ""]
    latex += ["", *(f"% {line}" for line in provenance()), ""]
    files[1].write_text("\n".join(markdown))
    files[2].write_text("\n".join(latex))
    return files


def show(table: pd.DataFrame, console: Console) -> None:
    """Print each printed table."""
    for name, title in TITLES.items():
        part = table[table["table"] == name]
        console.print(f"{title}: {caption(part)}\n{grid(cells(part))}\n", highlight=False)
