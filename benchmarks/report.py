"""Benchmark rows as tables, files and a plot."""

import re
from pathlib import Path

import matplotlib
import pandas as pd
from tabulate import tabulate

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import seaborn as sns

from experiments.config import ROOT

from .cases import Case

BASE = "detectron2"  # ratios are to it
_KEY = list(Case().key())


def folder(provenance: dict) -> Path:
    """Where the results of a device live, e.g. results/benchmarks/amd-epyc-2-threads."""
    name = provenance["device"]
    if provenance["threads"]:
        name += f" {provenance['threads']} threads"
    return ROOT / "results" / "benchmarks" / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def table(case: Case, rows: list[dict], provenance: dict) -> pd.DataFrame:
    """One line per implementation: what was measured and, of this one run, ratios.

    `speed_ratio` is the base's time over the row's, `memory_ratio` the row's peak over the base's,
    `matrix_share` the least MACs the function needs, times 2, over time and over the rate of matrix
    products measured beside it.
    """
    found = pd.DataFrame([case.key() | row for row in rows])
    base = found[found.implementation == BASE]
    base = base.iloc[0] if len(base) else pd.Series(dict(seconds=None, peak_mib=None))
    found = found.astype(dict(seconds="float", peak_mib="float"))
    found["gmacs"] = case.macs() / 1e9 if case.macs() else None
    found["matrix_share"] = 2 * found.gmacs.astype("float") / found.seconds / found.matrix_gflops
    found["speed_ratio"] = pd.to_numeric(base.seconds) / found.seconds
    found["memory_ratio"] = found.peak_mib / pd.to_numeric(base.peak_mib)
    return found.assign(**provenance)


def shown(found: pd.DataFrame) -> str:
    """The columns that a reader at the terminal wants."""
    columns = {
        "": found.implementation,
        "seconds": [_seconds(row) for _, row in found.iterrows()],
        f"speed / {BASE}": _format(found.speed_ratio, "{:.2f}x"),
        "share of matrix rate": _format(found.matrix_share, "{:.0%}"),
        "peak MiB": _format(found.peak_mib, "{:,.0f}"),
        f"memory / {BASE}": _format(found.memory_ratio, "{:.0%}"),
    }
    text = tabulate(columns, headers="keys", disable_numparse=True, colalign=["left"])
    return f"{text}\nmatrix products: {found.matrix_gflops.iloc[0]:,.0f} GFLOP/s"


def _seconds(row: pd.Series) -> str:
    if row.error:
        return row.error[:70]
    return f"{row.seconds:.4g} ({row.fastest:.4g} to {row.slowest:.4g}, {row.runs} runs)"


def _format(values: pd.Series, form: str) -> list[str]:
    return ["" if pd.isna(value) else form.format(value) for value in values]


def keep(found: pd.DataFrame, to: Path) -> None:
    """Add the rows to encoder.csv; a case measured again replaces its rows, as ratios are only
    comparable within one run."""
    path = to / "encoder.csv"
    to.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        old = pd.read_csv(path)
        same = (old[_KEY].astype(str) == found[_KEY].iloc[0].astype(str)).all(axis=1)
        found = pd.concat([old[~same].astype(object), found.astype(object)])
    found.sort_values([*_KEY], kind="stable").to_csv(path, index=False, float_format="%.6g")


def plot(to: Path) -> list[Path]:
    """Time and memory against tokens, for what was measured at more than one size.

    Returns:
        All files of the folder's results.
    """
    path = to / "encoder.csv"
    found = pd.read_csv(path)
    found = found[(found.module == "encoder") & found.seconds.notna()]
    found["tokens of the map"] = found.tokens**2
    groups = ["size", "blocks", "dtype", "mode"]
    growing = found.groupby([*groups, "implementation"]).filter(lambda rows: len(rows) > 1)
    written = [path]
    if growing.empty:
        return written
    sns.set_theme(style="whitegrid", context="notebook", palette="colorblind")
    plt.rcParams["svg.fonttype"] = "none"  # text stays text: small, and it can be searched
    cases = list(growing.groupby(groups))
    figure, axes = plt.subplots(
        len(cases), 2, figsize=(10, 3.2 * len(cases)), squeeze=False, layout="constrained"
    )
    order = list(dict.fromkeys(found.implementation))
    for (case, rows), pair in zip(cases, axes, strict=True):
        for axis, column, label in zip(
            pair, ("seconds", "peak_mib"), ("seconds", "peak memory, MiB"), strict=True
        ):
            sns.lineplot(
                rows,
                x="tokens of the map",
                y=column,
                hue="implementation",
                style="implementation",
                hue_order=order,
                style_order=order,
                markers=True,
                ax=axis,
            )
            axis.set(xscale="log", yscale="log", ylabel=label, title=", ".join(case))
            sides = sorted(set(rows.tokens))
            axis.set_xticks([s * s for s in sides], [f"{s} x {s}" for s in sides], minor=False)
            axis.minorticks_off()
    for kind in ("png", "svg"):
        written.append(to / f"growth.{kind}")
        figure.savefig(written[-1], dpi=110, metadata={"Date": None} if kind == "svg" else None)
    plt.close(figure)
    return written
