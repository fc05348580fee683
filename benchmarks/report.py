"""Benchmark rows as tables, files and a plot."""

import re
from pathlib import Path

import matplotlib
import pandas as pd
from tabulate import tabulate

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.ticker import LogLocator

from analysis.paper import published
from experiments import ROOT

from .cases import Case

BASE = "detectron2"  # ratios are to it
PACKAGES = ("torch", "transformers", "timm", "segment-anything")
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


def shown_over_window_only(found: pd.DataFrame) -> str:
    """The same, for the terminal."""
    return tabulate(_over_window_only(found), headers="keys", disable_numparse=True)


def _over_window_only(found: pd.DataFrame) -> dict:
    return {
        "over window only": [str(_case(row)) for row in _tuples(found)],
        "by": found.implementation,
        "time": _format(found.time_ratio, "{:.2f}x"),
        "paper": _format(found.paper_time_ratio, "{:.2f}x"),
        "peak memory": _format(found.memory_ratio, "{:.2f}x"),
        "paper ": _format(found.paper_memory_ratio, "{:.2f}x"),
    }


def _case(row) -> Case:
    return Case(**{name: getattr(row, name) for name in _KEY})


def _format(values: pd.Series, form: str) -> list[str]:
    return ["" if pd.isna(value) else form.format(value) for value in values]


def keep(found: pd.DataFrame, to: Path) -> None:
    """Add the rows to encoder.csv; a case measured again replaces its rows, as ratios are only
    comparable within one run."""
    path = to / "encoder.csv"
    to.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        old = _read(path)
        same = (old[_KEY].astype(str) == found[_KEY].iloc[0].astype(str)).all(axis=1)
        found = pd.concat([old[~same].astype(object), found.astype(object)])
    found.sort_values([*_KEY], kind="stable").to_csv(path, index=False, float_format="%.6g")


def _read(path: Path) -> pd.DataFrame:
    found = pd.read_csv(path)
    if "batch" not in found:  # as it was before there were GPUs
        found.insert(found.columns.get_loc("rel_pos") + 1, "batch", 1)
    return found


# Rows of Table 3: a detector with ViT-L, training memory and test time over window-only blocks.
_TABLE_3 = {"window only": "T3:0", "4 conv": "T3:1", "4 global": "T3:2", "all global": "T3:3"}


def over_window_only(to: Path) -> pd.DataFrame:
    """What propagation costs: each case over the same case with window blocks only, by the same
    implementation in the same run (one after the other, not in turns), beside the paper's Table 3
    where it has the figure. Also kept as a file."""
    found = _read(to / "encoder.csv")
    found = found[found.seconds.notna()]
    case = [column for column in _KEY if column != "blocks"] + ["implementation", "run"]
    windows = found[found.blocks == "window only"]
    both = found.merge(windows, on=case, suffixes=("", "_windows"))
    both["time_ratio"] = both.seconds / both.seconds_windows
    both["memory_ratio"] = both.peak_mib / both.peak_mib_windows
    both["paper_time_ratio"] = [
        _table_3(row, "forward", "test_time_ratio") for row in _tuples(both)
    ]
    both["paper_memory_ratio"] = [
        _table_3(row, "train", "train_mem_ratio") for row in _tuples(both)
    ]
    ratios = ["time_ratio", "memory_ratio", "paper_time_ratio", "paper_memory_ratio"]
    both = both[[*_KEY, "implementation", "seconds", "peak_mib", *ratios, "date"]]
    if (both.blocks != "window only").any():
        both.to_csv(to / "over-window-only.csv", index=False, float_format="%.4g")
    return both[both.blocks != "window only"]


def _tuples(frame: pd.DataFrame) -> list:
    return list(frame.itertuples())


def _table_3(row, mode: str, column: str) -> float | None:
    if (row.module, row.size, row.rel_pos, row.mode) != ("detector", "vit-l", False, mode):
        return None
    return float(published().loc[_TABLE_3[row.blocks], column])


def markdown(to: Path) -> None:
    """encoder.md: everything measured on this device, with how and when."""
    found = _read(to / "encoder.csv")
    found["error"] = found.error.fillna("")
    columns = {
        "case": [str(_case(row)) for row in _tuples(found)],
        "row": found.implementation,
        "seconds": [_seconds(row) for _, row in found.iterrows()],
        f"speed / {BASE}": _format(found.speed_ratio, "{:.2f}x"),
        "share of matrix rate": _format(found.matrix_share, "{:.0%}"),
        "peak MiB": _format(found.peak_mib, "{:,.0f}"),
        f"memory / {BASE}": _format(found.memory_ratio, "{:.0%}"),
    }
    lines = [f"# {found.device.iloc[0]}, measured by `make bench`", "", _pipe(columns), ""]
    windows = over_window_only(to)
    if len(windows):
        lines += ["Over the same network with window blocks only:", ""]
        lines += [_pipe(_over_window_only(windows)), ""]
    lines += [
        "Seconds: median (fastest to slowest). Ratios: of one run, rows taking turns. Matrix rate:",
        "the machine's own, measured beside each case; the share counts the least MACs that the",
        "function needs, times 2. Peak memory: what the row adds to a process that has loaded the",
        'libraries, weights included. "paper": Table 3 of arXiv:2203.16527v2, on a GPU.',
        "",
    ]
    for column in ("device", "threads", "python", *PACKAGES, "detectron2", "commit"):
        values = list(dict.fromkeys(str(value) for value in found[column].dropna()))
        lines.append(f"- {column}: {', '.join(values)}")
    lines.append(f"- dates: {found.date.min()[:10]} to {found.date.max()[:10]}")
    (to / "encoder.md").write_text("\n".join(lines) + "\n")


def _pipe(columns: dict) -> str:
    return tabulate(columns, headers="keys", tablefmt="pipe", disable_numparse=True)


def plot(to: Path) -> list[Path]:
    """Time and memory against tokens, for what was measured at more than one size.

    Returns:
        The folder's files.
    """
    path = to / "encoder.csv"
    found = _read(path)
    found = found[(found.module == "encoder") & found.seconds.notna()]
    found["tokens of the map"] = found.tokens**2
    found["positions"] = ["rel-pos" if rel_pos else "no rel-pos" for rel_pos in found.rel_pos]
    found.loc[found.batch > 1, "positions"] += ", " + found.batch.astype(str) + " images"
    groups = ["size", "blocks", "dtype", "mode", "positions"]
    growing = found.groupby([*groups, "implementation"]).filter(lambda rows: len(rows) > 1)
    if growing.empty:
        return sorted(to.iterdir())
    sns.set_theme(style="whitegrid", context="notebook", palette="colorblind")
    plt.rcParams["svg.fonttype"] = "none"  # text stays text: small, and it can be searched
    cases = list(growing.groupby(groups))
    figure, axes = plt.subplots(
        len(cases), 2, figsize=(10, 3.2 * len(cases)), squeeze=False, layout="constrained"
    )
    order = list(dict.fromkeys(growing.implementation))
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
            handles = axis.get_legend_handles_labels()
            axis.get_legend().remove()
            axis.set(xscale="log", yscale="log", ylabel=label, title=", ".join(case))
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
            sides = sorted(set(rows.tokens))
            axis.set_xticks([s * s for s in sides], [f"{s} x {s}" for s in sides], minor=False)
            axis.minorticks_off()
    figure.legend(*handles, loc="outside lower center", ncols=4)
    for kind in ("png", "svg"):
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(to / f"growth.{kind}", dpi=110, metadata=metadata)
    plt.close(figure)
    return sorted(to.iterdir())
