"""The page of `gpu-check`: its rows as tables for people."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from analysis.paper import published

PAGE = "gpu-check.md"
WHOLE = "(part)"  # key of what ended a whole part; without an error: it has gone well since
_TABLE_3 = {"window only": "T3:0", "4 conv": "T3:1", "4 global": "T3:2", "all global": "T3:3"}
# A kernel errs as the textbook form does in the same precision, but for the luck of rounding.
_TOLERATED = 2.0
_NAMED = 3  # settings of a cell


def latest(rows: list[dict], mark: dict) -> dict[tuple[str, str], dict]:
    """The last row of each part and key, of one device, torch and size; without plans."""
    mine = [row for row in rows if row["key"] and mark.items() <= row.items()]
    found = {(row["part"], row["key"]): row for row in mine}
    return {k: row for k, row in found.items() if k[1] != WHOLE or row["error"]}


def write(out: Path, rows: list[dict], mark: dict) -> None:
    """gpu-check.md in the folder.

    Args:
        rows: of `gpu_journal.read`.
        mark: the rows that count, see `gpu_journal.Call.mark`.
    """
    planned = {
        r["part"]: r["planned"] for r in rows if "planned" in r and mark.items() <= r.items()
    }
    found = latest(rows, mark)
    versions = found.get(("machine", "versions"), {})
    lines = [f"# {mark['device']}, measured by `make gpu-check`", ""]
    if mark["tiny"]:
        lines += ["A rehearsal on tiny inputs: its times and memory mean nothing.", ""]
    for part, table in _TABLES.items():
        mine = [row for (name, key), row in found.items() if name == part]
        refused = [row["key"] for row in mine if row.get("refused")]
        good = [row for row in mine if not row["error"] and not row.get("refused")]
        good = pd.DataFrame(good)
        bad = [row for row in mine if row["error"]]
        counts = [f"{len(good)} of {planned.get(part, '?')} rows", f"{len(bad)} failed"]
        counts += [f"{len(refused)} refused by torch"] if refused else []
        lines += [f"## {part.capitalize()}", "", f"{', '.join(counts)}.", ""]
        if len(good):
            lines += [*table(good), ""]
        if refused:
            lines += [f"Refused: {'; '.join(refused)}.", ""]
        if bad:
            lines += [_pipe({"failed": [r["key"] for r in bad], "why": [_why(r) for r in bad]}), ""]
    dates = sorted(row["date"] for row in found.values()) or [""]
    names = ("driver", "cuda", "cudnn", "python", "triton", "torchvision", "timm", "transformers")
    facts = {"torch": mark["torch"]} | {name: versions.get(name) for name in names}
    for name in ("memory_gib", "multiprocessors", "capability", "cores"):
        facts[name.replace("_", " ")] = versions.get(name)
    facts["commit"] = ", ".join(dict.fromkeys(r["commit"] for r in found.values() if r["commit"]))
    facts["dates"] = f"{dates[0]} to {dates[-1]}"
    lines += [f"- {name}: {value}" for name, value in facts.items() if value]
    (out / PAGE).write_text("\n".join(lines) + "\n")


def _why(row: dict) -> str:
    return row["error"].replace("|", "/")[:160]


def _pipe(columns: dict) -> str:
    return tabulate(columns, headers="keys", tablefmt="pipe", disable_numparse=True)


def _machine(rows: pd.DataFrame) -> list[str]:
    lines = []
    for row in rows.to_dict("records"):
        if row.get("tflops", float("nan")) > 0:
            lines.append(f"- {row['key']}: {row['tflops']:,.1f} TFLOP/s")
        if row.get("terabytes_per_second", float("nan")) > 0:
            lines.append(
                f"- {row['key']}: {row['terabytes_per_second']:.2f} TB/s, read and written"
            )
    return lines


def _errors(rows: pd.DataFrame) -> list[str]:
    """Of each kernel the worst error, over the reference's in the same setting."""
    case = ["N", "D", "dtype", "rel_pos", "masked"]
    base = rows[rows.kernel == "reference"][[*case, "output_error", "gradient_error"]]
    both = rows.merge(base, on=case, how="left", suffixes=("", "_base"))
    columns = {name: [] for name in ("kernel", "precision", "settings")}
    columns |= {name: [] for name in ("output", "gradient", "not finite", "imprecise")}
    for (kernel, dtype), group in both.groupby(["kernel", "dtype"], sort=False):
        over = pd.DataFrame(
            {w: group[f"{w}_error"] / group[f"{w}_error_base"] for w in ("output", "gradient")}
        )
        wrong = group[(over > _TOLERATED).any(axis=1)]
        columns["kernel"].append(kernel)
        columns["precision"].append(dtype)
        columns["settings"].append(len(group))
        for word in ("output", "gradient"):
            worst = f"{group[f'{word}_error'].max():.1e} ({over[word].max():.2f}x)"
            columns[word].append(worst)
        columns["not finite"].append(_named(group[~group.finite.astype(bool)]))
        columns["imprecise"].append(_named(wrong[wrong.finite.astype(bool)]))
    return [
        "Worst |found - exact| / |exact| against float64 of the output and of any gradient, and in",
        "brackets the worst ratio to the textbook form's in the same precision. Imprecise: more",
        f"than {_TOLERATED} times that.",
        "",
        _pipe(columns),
    ]


def _named(rows: pd.DataFrame) -> str:
    """The settings of some rows, the first of them."""
    names = list(rows.key.str.split(": ").str[-1])
    more = len(names) - _NAMED
    return "; ".join(names[:_NAMED]) + (f"; and {more} more" if more > 0 else "")


def _tests(rows: pd.DataFrame) -> list[str]:
    return [
        _pipe(
            {
                "test": [key.split("::")[-1] for key in rows.key],
                "": list(rows.outcome),
                "seconds": [f"{seconds:.1f}" for seconds in rows.seconds],
            }
        )
    ]


def _attention(rows: pd.DataFrame) -> list[str]:
    """A line per case, a column per kernel."""
    rows = rows.assign(
        case=rows.key.str.split(": ", n=1).str[1],
        cell=[
            f"{1000 * row.seconds:.3g} ms"
            + ("" if pd.isna(row.peak_mib) else f", {row.peak_mib:,.0f} MiB")
            + (" (not finite)" if row.finite is False else "")
            for row in rows.itertuples()
        ],
    )
    wide = rows.pivot_table("cell", "case", "kernel", aggfunc="last", sort=False, fill_value="")
    return [
        f"Attention of one block on {rows.batch.iloc[0]} maps of {rows.tokens.iloc[0]} x "
        f"{rows.tokens.iloc[0]} tokens: time (median), peak memory beside",
        "the input. The kernels that each ran are in the rows.",
        "",
        _pipe({"": list(wide.index)} | {name: list(wide[name]) for name in wide}),
    ]


def _networks(rows: pd.DataFrame) -> list[str]:
    rows = rows.assign(
        case=rows.key.str.split(": ", n=1).str[1], ms=1000 * rows.seconds / rows.batch
    )
    rows = rows.assign(place=rows.groupby("case", sort=False).ngroup()).sort_values(
        "place", kind="stable"
    )

    def over(base: pd.DataFrame, on: list[str], memory: bool = False) -> list[str]:
        """A row over the base's that it matches."""
        value = "peak_mib" if memory else "ms"
        base = base[[*on, "batch", value]].drop_duplicates(on, keep="last")
        found = rows[[*on, "batch", value]].merge(base, on=on, how="left", suffixes=("", "_base"))
        ratio = pd.to_numeric(found[value]) / pd.to_numeric(found[f"{value}_base"])
        if memory:
            return [
                "" if pd.isna(r) or a != b else f"{r:.2f}x"
                for r, a, b in zip(ratio, found.batch, found.batch_base, strict=True)
            ]
        return ["" if pd.isna(r) else f"{1 / r:.2f}x" for r in ratio]

    theirs = rows[rows.implementation == "detectron2"]
    columns = {
        "": list(rows.case),
        "by": list(rows.implementation),
        "images": list(rows.batch),
        "ms / image": [f"{ms:.4g}" for ms in rows.ms],
        "speed / detectron2": over(theirs, ["case"]),
        "peak MiB": ["" if pd.isna(m) else f"{m:,.0f}" for m in rows.peak_mib],
        "memory / detectron2": over(theirs, ["case"], memory=True),
    }
    lines = [_pipe(columns), ""]
    detectors = rows[(rows.module == "detector") & ~rows.rel_pos.astype(bool)]
    lines += _over_window_only(detectors)
    return [
        "Forward passes (train: forward and backward) at once over so many images, half of them or",
        "fewer where more did not fit; memory is compared where it is of as many.",
        "",
        *lines,
    ]


def _over_window_only(rows: pd.DataFrame) -> list[str]:
    """Table 3: time and memory of a detector over the same with window blocks only."""
    base = rows[rows.blocks == "window only"].set_index(["implementation", "mode"])
    paper, shown = published(), []
    for row in rows[rows.blocks != "window only"].itertuples():
        if (row.implementation, row.mode) not in base.index:
            continue
        windows = base.loc[(row.implementation, row.mode)]
        said = paper.loc[_TABLE_3[row.blocks]]
        train = row.mode == "train"
        same = row.batch == windows.batch and not pd.isna(row.peak_mib)
        shown.append(
            {
                "over window only": f"{row.blocks}, {row.mode}",
                "by": row.implementation,
                "time": f"{row.ms / windows.ms:.2f}x",
                "paper": "" if train else f"{float(said.test_time_ratio):.2f}x",
                "peak memory": f"{row.peak_mib / windows.peak_mib:.2f}x" if same else "",
                "paper ": f"{float(said.train_mem_ratio):.2f}x" if train else "",
            }
        )
    if not shown:
        return []
    return ["Beside Table 3 of arXiv:2203.16527v2:", "", _pipe(_by_column(shown))]


def _by_column(rows: list[dict]) -> dict[str, list]:
    return {name: [row[name] for row in rows] for name in rows[0]}


_TABLES: dict[str, Callable[[pd.DataFrame], list[str]]] = {
    "machine": _machine,
    "errors": _errors,
    "tests": _tests,
    "attention": _attention,
    "networks": _networks,
}
