"""Differences to the base with their intervals, and the seeds behind them."""

from pathlib import Path

import pandas as pd

from experiments.records import FOREIGN

from .. import reach, style
from ..results import KINDS, ONE_SEED, Results
from ..style import plt
from . import pieces

_VERDICTS = {"better": "#05603a", "worse": "#a4262c"}  # the report's colors


def forest(results: Results, path: Path) -> list[Path]:
    """A forest plot: of each row the difference to the base in box and mask AP, with its interval,
    and the region of practical equivalence."""
    rows = results.table[results.table["variant"] != results.manifest["base"]]
    kinds = [kind for kind in KINDS if rows[f"ap_{kind}_diff"].notna().any()]
    if not kinds:
        return []
    style.use()
    rows = rows[rows[[f"ap_{kind}_diff" for kind in kinds]].notna().any(axis=1)]
    figure, panels = plt.subplots(
        1,
        len(kinds),
        figsize=(4.2 * len(kinds), 1.6 + 0.42 * len(rows)),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    numbers = []
    for axis, kind in zip(panels[0], kinds, strict=True):
        axis.axvspan(-results.delta, results.delta, color="0.9", linewidth=0, zorder=0)
        axis.axvline(0, color=style.GREY, linewidth=1, zorder=1)
        ends = {
            end: rows[f"ap_{kind}{end}"].astype(float)
            for end in ("_diff", "_diff_low", "_diff_high")
        }
        for place, (i, row) in enumerate(rows.iterrows()):
            value, low, high = (ends[end][i] for end in ends)
            verdict = row[f"ap_{kind}_verdict"] or ""
            words = dict(kind=kind, variant=row["variant"], seeds=row["seeds"])
            numbers.append(words | dict(diff=value, low=low, high=high, verdict=verdict))
            color = _VERDICTS.get(verdict, style.GREY)
            axis.plot([low, high], [place, place], "-", color=color, linewidth=2, zorder=2)
            face = "white" if verdict in ("undecided", ONE_SEED, "") else color
            (point,) = axis.plot(value, place, "s", color=color, mfc=face, markersize=7, zorder=3)
            interval = "" if pd.isna(low) else f" (95 % interval {low:+.1f} to {high:+.1f})"
            says = f": {verdict}" if verdict else ""
            style.tip(point, f"{row['variant']}\n{value:+.1f} {kind} AP{interval}{says}")
        # Intervals of two seeds can be many times as long as everything else is far apart.
        most = max(2 * ends["_diff"].abs().max(), 3 * results.delta)
        low = ends["_diff_low"].fillna(ends["_diff"]).min()
        high = ends["_diff_high"].fillna(ends["_diff"]).max()
        left = min(max(low, -most), ends["_diff"].min(), -1.1 * results.delta)
        right = max(min(high, most), ends["_diff"].max(), 1.1 * results.delta)
        margin = 0.05 * (right - left) or 1.0
        axis.set_xlim(left - margin, right + margin)
        axis.set_yticks(range(len(rows)), [pieces.short(name) for name in rows["variant"]])
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.grid(False, axis="y")
        axis.set_xlabel(f"{kind} AP less that of {pieces.short(results.manifest['base'])}")
    pieces.title(figure, results, "differences")
    signs = {
        "95 % interval,\nall rows at once": dict(linestyle="-", linewidth=2),
        "decided": dict(marker="s", markersize=7),
        "undecided": dict(marker="s", markersize=7, mfc="white"),
        f"of no interest:\nwithin ±{results.delta:g} AP": dict(
            marker="s", markersize=12, color="0.9"
        ),
    }
    pieces.legend(figure, {}, signs)
    return style.save(figure, path, pd.DataFrame(numbers))


def seeds(results: Results, path: Path) -> list[Path]:
    """A slope plot: AP of each row and seed, the runs of one seed joined by a line."""
    runs = results.records
    if runs.empty or runs["seed"].nunique() < 2 or runs["variant"].nunique() < 2:
        return []
    runs = runs[(runs["fingerprint"] != FOREIGN) & ~reach.not_learned(runs)]
    kinds = [k for k in KINDS if f"ap_{k}" in runs and runs[f"ap_{k}"].notna().any()]
    names = [name for name in results.table["variant"] if name in set(runs["variant"])]
    if not kinds or len(names) < 2:
        return []
    style.use()
    looks = style.looks(sorted(runs["seed"].unique()))
    figure, panels = plt.subplots(
        1, len(kinds), figsize=(4.5 * len(kinds), 4), squeeze=False, layout="constrained"
    )
    for axis, kind in zip(panels[0], kinds, strict=True):
        for seed, mine in runs.groupby("seed"):
            mine = mine.set_index("variant")[f"ap_{kind}"].reindex(names)
            look = looks[seed] | dict(markersize=7, mec="white", mew=0.5)
            (line,) = axis.plot(range(len(names)), mine, **look)
            style.tip(line, f"seed {seed}\n" + ", ".join(f"{ap:.1f}" for ap in mine))
        slanted = dict(rotation=30, ha="right", rotation_mode="anchor")
        axis.set_xticks(range(len(names)), [pieces.short(name) for name in names], **slanted)
        axis.set_xlim(-0.3, len(names) - 0.7)
        axis.grid(False, axis="x")
        axis.set_ylabel(f"{kind} AP, {pieces.data(results)}")
    pieces.title(figure, results, "AP of each seed")
    pieces.legend(figure, {f"seed {seed}": look for seed, look in looks.items()}, {}, lines=True)
    columns = ["variant", "seed", *(f"ap_{kind}" for kind in kinds)]
    return style.save(figure, path, runs[columns])
