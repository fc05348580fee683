"""A study's table: mean and spread over seeds, differences to the base row, costs, the paper's."""

import shlex
from pathlib import Path

import pandas as pd

from experiments.errors import UserError
from experiments.records import load_study

from .paper import published

# COCO's, and LVIS's by how often a category occurs: rare, common, frequent.
FIGURES = ("ap", "ap50", "ap75", "aps", "apm", "apl", "apr", "apc", "apf")
KINDS = ("box", "mask")
PAPER_SIZES = ("vit-b", "vit-l")
_COSTS = ("params", "macs", "activations", "encoder_params", "encoder_macs")
_MEASURED = ("train_seconds", "images_per_second", "peak_memory_mib")


def study_table(folder: str | Path) -> tuple[dict, pd.DataFrame]:
    """One row per variant of the study that was run in `folder`; unfinished rows are empty.

    AP is in 0..100, the mean over seeds; `_std` is the sample standard deviation over seeds (empty
    for one seed). `ap_box_diff` is the mean over seeds of the difference to the base row at the
    same seed, `ap_box_diff_std` its standard deviation; likewise for masks. `macs` are of the whole
    detector and one image. `paper_*` are the paper's, for its sizes, at COCO scale.

    Returns:
        The study's manifest, and the table.
    """
    manifest, records = load_study(folder)
    rows = [_row(manifest, variant, records) for variant in manifest["variants"]]
    return manifest, pd.DataFrame(rows)


def _row(manifest: dict, variant: dict, records: pd.DataFrame) -> dict:
    mine = _of(records, variant["name"])
    row = dict(
        variant=variant["name"], scale=manifest["scale"], size=variant["size"], seeds=len(mine)
    )
    for kind in KINDS:
        for figure in FIGURES:
            values = mine.get(f"{figure}_{kind}", pd.Series(dtype=float)).astype(float)
            row[f"{figure}_{kind}"] = values.mean()
            row[f"{figure}_{kind}_std"] = values.std()
    base = _of(records, manifest["base"])
    for kind in KINDS:
        column = f"ap_{kind}"
        both = column in mine and column in base
        difference = (mine[column] - base[column]).dropna() if both else None
        is_base = variant["name"] == manifest["base"]
        known = difference is not None and not is_base
        row[f"{column}_diff"] = difference.mean() if known else None
        row[f"{column}_diff_std"] = difference.std() if known else None
    for column in _COSTS:
        row[column] = mine[column].iloc[0] if len(mine) else None
    for column in _MEASURED:
        row[column] = mine[column].mean() if len(mine) else None
    for size in _paper_sizes(manifest):
        for kind in KINDS:
            where = variant["published"].get(size or variant["size"], "").split()
            value = published().at[where[0], f"ap_{kind}"] if where else None
            row[_paper_column(kind, size)] = value
    return row


def _paper_sizes(manifest: dict) -> tuple[str, ...]:
    """Sizes that the paper's figures are shown for; "": of each row its own."""
    sizes = {variant["size"] for variant in manifest["variants"]}
    return PAPER_SIZES if len(sizes) == 1 and sizes <= {"vit-mini", *PAPER_SIZES} else ("",)


def _paper_column(kind: str, size: str) -> str:
    return f"paper_ap_{kind}" + f"_{size.replace('-', '')}" * bool(size)


def _of(records: pd.DataFrame, variant: str) -> pd.DataFrame:
    """A variant's records by seed."""
    if records.empty:
        return records
    return records[records["variant"] == variant].set_index("seed").sort_index()


def check_publishable(manifest: dict, table: pd.DataFrame) -> None:
    """Tables in results/ are of whole studies, with their own settings and data.

    Raises:
        UserError: it is not of that kind.
    """
    words = shlex.split(manifest["command"])
    for option in ("--overrides", "--dataset", "--val", "--variants"):
        if option in words:
            raise UserError(f"results/ keeps studies as they are: run it without {option}")
    if (table["seeds"] == 0).any():
        raise UserError("results/ keeps finished studies: some rows of this one are not done")


def provenance(folder: str | Path) -> list[str]:
    """What the table's numbers come from, one line each: command, device, versions, dates."""
    manifest, records = load_study(folder)
    lines = [f"command: `{manifest['command']}`"]
    if records.empty:
        return lines
    versions = records["versions"].map(lambda v: ", ".join(f"{k} {n}" for k, n in v.items()))
    for name, values in (
        ("device", records["device"] + ", threads " + records["threads"].astype(str)),
        ("precision", records["precision"]),
        ("peak memory is", records["memory_kind"]),
        ("MACs are for one image of", records["input_size"].map(lambda s: f"{s[0]} x {s[1]}")),
        ("versions", versions),
        ("commit", records["git_commit"]),
        ("finished", records["finished"].str[:10]),
    ):
        lines.append(f"{name}: {'; '.join(sorted(set(values)))}")
    return lines


def _spread(mean: float, std: float, digits: int = 1, sign: str = "") -> str:
    """ "51.2 ± 0.4"; without the spread of a single seed; empty where there is nothing."""
    if pd.isna(mean):
        return ""
    text = f"{mean:{sign}.{digits}f}"
    return text if pd.isna(std) else f"{text} ± {std:.{digits}f}"


def _amount(value: float, unit: float, digits: int) -> str:
    return "" if value is None or pd.isna(value) else f"{value / unit:.{digits}f}"


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """AP, differences, costs and the paper's AP as text cells, units in the headers."""
    digits = 1 if table["macs"].max() > 1e10 else 3
    kinds = [k for k in KINDS if k == "box" or table[f"ap_{k}"].notna().any()]
    several = table["size"].nunique() > 1
    rows = []
    for _, r in table.iterrows():
        cells = {"variant": r["variant"], "seeds": str(r["seeds"])}
        if several:
            cells["size"] = r["size"]
        for kind in kinds:
            cells[f"{kind} AP"] = _spread(r[f"ap_{kind}"], r[f"ap_{kind}_std"])
            cells[f"diff {kind}"] = _spread(
                r[f"ap_{kind}_diff"], r[f"ap_{kind}_diff_std"], sign="+"
            )
        cells["params M"] = _amount(r["params"], 1e6, 2)
        cells["GMACs"] = _amount(r["macs"], 1e9, digits)
        cells["train s"] = _amount(r["train_seconds"], 1, 0)
        cells["peak MiB"] = _amount(r["peak_memory_mib"], 1, 0)
        for size in ("", *PAPER_SIZES):
            if table.get(_paper_column("box", size), pd.Series(dtype=float)).notna().any():
                aps = [_amount(r[_paper_column(kind, size)], 1, 1) for kind in KINDS]
                cells[f"paper {size}".strip()] = " / ".join(filter(None, aps))
        rows.append(cells)
    return pd.DataFrame(rows)


def details(table: pd.DataFrame) -> pd.DataFrame:
    """AP at single IoUs and by COCO's object sizes, mean over seeds, as text cells."""
    rows = []
    for _, r in table.iterrows():
        cells = {"variant": r["variant"]}
        for kind in KINDS:
            for figure in FIGURES[1:]:
                if table[f"{figure}_{kind}"].notna().any():
                    name = f"{kind} AP{figure.removeprefix('ap').upper()}"
                    cells[name] = _amount(r[f"{figure}_{kind}"], 1, 1)
        rows.append(cells)
    return pd.DataFrame(rows)


def _markdown_table(text: pd.DataFrame) -> list[str]:
    return [
        "| " + " | ".join(text.columns) + " |",
        "|" + "|".join(" --- " if i == 0 else " ---: " for i in range(len(text.columns))) + "|",
        *("| " + " | ".join(cells) + " |" for cells in text.itertuples(index=False)),
    ]


def markdown(manifest: dict, table: pd.DataFrame, provenance: list[str]) -> str:
    """The table as Markdown, with its question and where its numbers come from."""
    sizes = ", ".join(dict.fromkeys(variant["size"] for variant in manifest["variants"]))
    lines = [
        f"# {manifest['study']}, {manifest['scale']} scale, {sizes}",
        "",
        manifest["question"],
        "",
        *_markdown_table(summary(table)),
        "",
        f"Mean ± standard deviation over seeds; diff: to `{manifest['base']}` at the same seed."
        " MACs are multiply-accumulates of the whole detector, attention counted. Paper: box / mask"
        " AP of arXiv:2203.16527v2 on COCO val2017, never comparable with the mini set's.",
        "",
        *_markdown_table(details(table)),
        "",
        *(f"- {line}" for line in provenance),
        "",
    ]
    return "\n".join(lines)
