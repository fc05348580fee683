"""Plots of a study's own finished runs.

Each public function of a study's results takes a path without suffix and returns what it wrote:
.png, .svg, and .csv, the numbers behind the picture; nothing if the study has none of that kind.
`ALL` has them by the name of their files. AP is in 0..100.
"""

import inspect
import json
import textwrap
from collections.abc import Callable, Iterable, Sized
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation

from experiments.records import FOREIGN, METRICS

from . import reach, style
from .results import KINDS, ONE_SEED, PAPER_SIZES, Results, paper_column, paper_data
from .style import plt

_OBJECTS = {"aps": "small\n(below 32² px)", "apm": "medium", "apl": "large\n(above 96² px)"}
_BINS = 100  # of a learning curve
_SIDES = {"mini": range(64, 513, 8), "coco": range(256, 1537, 16)}  # pixels
# Distances in words; others are numbers of windows.
_PLACES = {
    "self": "shown\non itself",
    "0": "same\nwindow",
    "convs": "read by\nconvs",
    "1": "next\nwindow",
}
_PROPAGATIONS = ("none", "global", "conv", "shifted")  # that the closed formulas know


# ---- Differences -------------------------------------------------------------------------------

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
        axis.set_yticks(range(len(rows)), [_short(name) for name in rows["variant"]])
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.grid(False, axis="y")
        axis.set_xlabel(f"{kind} AP less that of {_short(results.manifest['base'])}")
    _title(figure, results, "differences")
    signs = {
        "95 % interval,\nall rows at once": dict(linestyle="-", linewidth=2),
        "decided": dict(marker="s", markersize=7),
        "undecided": dict(marker="s", markersize=7, mfc="white"),
        f"of no interest:\nwithin ±{results.delta:g} AP": dict(
            marker="s", markersize=12, color="0.9"
        ),
    }
    _legend(figure, {}, signs)
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
        axis.set_xticks(range(len(names)), [_short(name) for name in names], **slanted)
        axis.set_xlim(-0.3, len(names) - 0.7)
        axis.grid(False, axis="x")
        axis.set_ylabel(f"{kind} AP, {_data(results)}")
    _title(figure, results, "AP of each seed")
    _legend(figure, {f"seed {seed}": look for seed, look in looks.items()}, {}, lines=True)
    columns = ["variant", "seed", *(f"ap_{kind}" for kind in kinds)]
    return style.save(figure, path, runs[columns])


# ---- AP against cost ---------------------------------------------------------------------------


# Of runs that did not learn the cue.
_MARK = textwrap.fill(reach.MARK, 26)
_CROSS = dict(marker="x", markersize=6, mew=1.4, zorder=5)


class _Cost(NamedTuple):
    """A column of the table as an axis."""

    column: str
    name: str
    label: str  # with the unit to be filled in
    units: tuple[tuple[float, str, float], ...]  # size, name, and the maximum it is used from
    counted: bool  # and so the same on every machine

    def unit(self, values: pd.Series) -> tuple[float, str]:
        return [unit[:2] for unit in self.units if values.max() >= unit[2]][-1]


_MACS = _Cost("macs", "MACs", "{}, one image", ((1e9, "GMACs", 0), (1e12, "TMACs", 1e11)), True)
_PARAMS = _Cost("params", "parameters", "{} parameters", ((1e6, "million", 0),), True)
_TIME = _Cost(
    "train_seconds", "training time", "training time, {}", ((1, "s", 0), (3600, "h", 7200)), False
)
_MEMORY = _Cost(
    "peak_memory_mib",
    "peak memory",
    "peak memory, {}",
    ((1, "MiB", 0), (1024, "GiB", 10240)),
    False,
)


class _Paper(NamedTuple):
    """Which of the paper's AP stand beside ours."""

    size: str  # that the table's columns are of; "": of each row its own
    words: str
    on_our_data: bool


def ap_vs_macs(results: Results, path: Path) -> list[Path]:
    """Box and mask AP against MACs of the detector on one image, as of `_ap_vs_cost`."""
    return _ap_vs_cost(results, path, _MACS)


def ap_vs_params(results: Results, path: Path) -> list[Path]:
    """Box and mask AP against parameters of the detector, as of `_ap_vs_cost`."""
    return _ap_vs_cost(results, path, _PARAMS)


def ap_vs_time(results: Results, path: Path) -> list[Path]:
    """Box and mask AP against the time of one training, as of `_ap_vs_cost`."""
    return _ap_vs_cost(results, path, _TIME)


def ap_vs_memory(results: Results, path: Path) -> list[Path]:
    """Box and mask AP against the peak memory of training, as of `_ap_vs_cost`."""
    return _ap_vs_cost(results, path, _MEMORY)


def _ap_vs_cost(results: Results, path: Path, cost: _Cost) -> list[Path]:
    """A point is a row's mean AP over seeds, its bar the 95 % interval, a dot a single run.

    Rows that are surely better than all that cost no more are ringed: the Pareto front, as far as
    it is decided. The paper's AP stand at our counted costs if they are of the same data;
    else, and where the cost is measured, they have panels of their own, row by row.
    """
    table = results.table.dropna(subset=[cost.column])
    kinds = [kind for kind in KINDS if f"ap_{kind}" in results.records]
    kinds = [kind for kind in kinds if results.records[f"ap_{kind}"].notna().any()]
    table = table[table["variant"].isin(results.records.get("variant", ()))]
    if table.empty or not kinds:
        return []
    style.use()
    looks = _looks(results)
    unit, unit_name = cost.unit(table[cost.column])
    paper = _paper(results)
    on_axes = paper is not None and paper.on_our_data and cost.counted
    beside = (
        paper is not None and not on_axes and table[paper_column("box", paper.size)].count() > 1
    )
    heights = [4, 1.9] if beside else [4]
    figure, panels = plt.subplots(
        len(heights),
        len(kinds),
        figsize=(4 * len(kinds), sum(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    parts, marked = [], reach.not_learned(results.records)
    for above, below, kind in zip(panels[0], panels[-1], kinds, strict=True):
        part = _points(table, kind, cost, paper, results.manifest["base"])
        parts.append(part)
        drawn = part.assign(x=part[cost.column] / unit)
        for column, mine in (("runs", ~marked), ("marked", marked)):
            runs = results.records[mine].groupby("variant")[f"ap_{kind}"].apply(list).to_dict()
            drawn[column] = [runs.get(variant, []) for variant in part["variant"]]
        costs = {i: cost.label.format(f"{x:.4g} {unit_name}") for i, x in drawn["x"].items()}
        drawn["tip"] = [_tip(results, i, kind) + text for i, text in costs.items()]
        _draw_points(above, drawn, looks, on_axes)
        above.set_xlabel(cost.label.format(unit_name))
        above.set_ylabel(f"{kind} AP, {_data(results)}")
        if beside:
            _draw_paper(below, part, looks, paper.words)
    _title(figure, results, f"AP against {cost.name}", measured=not cost.counted)
    points, signs = pd.concat(parts), {}
    if points["low"].notna().any():
        one_seed = ",\nof one seed:\nover images alone" * bool((points["seeds"] == 1).any())
        signs["95 % interval,\ncut at the frame" + one_seed] = dict(marker="|", markersize=14)
    if (table["seeds"] > 1).any():
        signs["single run"] = dict(marker=".", markersize=7)
    if marked.any():
        signs[_MARK] = _CROSS
    if points["pareto_front"].any():
        signs["Pareto front,\nas far as decided"] = dict(
            marker="o", markersize=14, mfc="none", linestyle="--"
        )
    if on_axes:
        signs[paper.words.replace(", ", ",\n", 1)] = dict(marker="o", markersize=8, mfc="white")
    _legend(figure, {name: looks[name] for name in table["variant"]}, signs)
    return style.save(figure, path, points)


def _points(
    table: pd.DataFrame, kind: str, cost: _Cost, paper: _Paper | None, base: str
) -> pd.DataFrame:
    """The numbers of a panel; rows of which no run learned the cue have no AP."""
    ap = f"ap_{kind}"
    marked = table.get("cue_not_learned", pd.Series(0, table.index)) > 0
    table = table[table[ap].notna() | marked]
    points = pd.DataFrame({"kind": kind, "variant": table["variant"], "seeds": table["seeds"]})
    points[cost.column] = table[cost.column].astype(float)
    for name, column in {"ap": ap, "low": f"{ap}_low", "high": f"{ap}_high"}.items():
        points[name] = table[column].astype(float)
    ends = [table[f"{ap}_diff{end}"].astype(float) for end in ("_low", "_high")]
    is_base = table["variant"] == base
    low, high = (end.mask(is_base, 0.0) for end in ends)
    told = ~table[f"{ap}_verdict"].isin(["", ONE_SEED]) | is_base
    points["pareto_front"] = pareto_front(points[cost.column], low.where(told), high.where(told))
    if paper:
        points["paper"] = table[paper_column(kind, paper.size)].astype(float)
        points["paper_is"] = paper.words
    return points


def pareto_front(cost: pd.Series, low: pd.Series, high: pd.Series) -> list[bool]:
    """Which rows are surely better than all others that cost no more, or cost the least of all.

    Args:
        low, high: intervals of the difference to the base, which hold at once; NaN: not known, and
            so neither on the front nor in its way. The base's are 0.
    """
    front, known = [], low.notna()
    for i in cost.index:
        others = known & (cost <= cost[i]) & (cost.index != i)
        front.append(bool(known[i] and known.sum() > 1 and (high[others] < low[i]).all()))
    return front


def _tip(results: Results, index: int, kind: str) -> str:
    """What a row of the table says of its AP, in words and lines."""
    row = results.table.loc[index]
    value, low, high, difference, verdict = (
        row[f"ap_{kind}{end}"] for end in ("", "_low", "_high", "_diff", "_verdict")
    )
    if pd.isna(value):
        return f"{row['variant']}\n{reach.MARK}\n"
    alone = " over images alone" * bool(row["seeds"] == 1)
    interval = "" if pd.isna(low) else f" (95 % interval{alone} {low:.1f} to {high:.1f})"
    seeds = f"{row['seeds']} seed" + ("s" if row["seeds"] > 1 else "")
    text = f"{row['variant']}\n{kind} AP {value:.1f}{interval}, {seeds}\n"
    if pd.isna(difference):
        return text
    says = f": {verdict}" if verdict else ""
    return text + f"{difference:+.1f} to {results.manifest['base']}{says}\n"


def _draw_points(axis: Axes, points: pd.DataFrame, looks: dict, with_paper: bool) -> None:
    ends = points[points["pareto_front"]].sort_values("x")
    axis.step(ends["x"], ends["ap"], "--", where="post", color=style.GREY, linewidth=1, zorder=1)
    for row, right in zip(_rows(points), _side_by_side(points["x"]), strict=True):
        shift = ScaledTranslation(right / 72, 0, axis.figure.dpi_scale_trans)
        place = dict(transform=axis.transData + shift)
        x, look = row["x"], looks[row["variant"]]
        color = look["color"]
        bar = dict(color=color, linewidth=1.4, marker="_", markersize=7, markeredgewidth=1.4)
        axis.plot([x, x], [row["low"], row["high"]], zorder=2, **bar, **place)
        if row["seeds"] > 1:
            axis.plot([x] * len(row["runs"]), row["runs"], ".", color=color, zorder=2, **place)
        if row["marked"]:
            at = [x] * len(row["marked"]), row["marked"]
            (crosses,) = axis.plot(*at, **_CROSS, color=color, linestyle="none", **place)
            style.tip(crosses, f"{row['variant']}\n{reach.MARK}")
        if row["pareto_front"]:
            ring = dict(markersize=15, mfc="none", mec=style.GREY, mew=1)
            axis.plot(x, row["ap"], "o", zorder=2, **ring, **place)
        if with_paper:
            axis.plot(x, row["paper"], zorder=3, **_hollow(look), **place)
        (point,) = axis.plot(x, row["ap"], zorder=4, **_marker(look), **place)
        style.tip(point, row["tip"])
    seen = [points["ap"], points["runs"].explode(), points["marked"].explode()]
    seen = pd.concat(seen).astype(float)
    if with_paper:
        seen = pd.concat([seen, points["paper"]])
    # Intervals of few seeds can be many times as long as everything else is far apart.
    most = max(0.6 * (seen.max() - seen.min()), 5)
    bottom = min(seen.min(), max(points["low"].min(), seen.min() - most, 0))
    top = max(seen.max(), min(points["high"].max(), seen.max() + most, 100))
    axis.set_ylim(bottom - 0.06 * (top - bottom), top + 0.06 * (top - bottom))
    # A few percent of a cost are shown as a few percent.
    left, right = points["x"].min(), points["x"].max()
    margin = max(0.12 * (right - left), (right / 2 - (right - left)) / 2)
    axis.set_xlim(left - margin, right + margin)


def _side_by_side(x: pd.Series) -> pd.Series:
    """How far to the right each point is drawn, in pt: those of one cost beside each other."""
    x = x.sort_values(kind="stable")
    group = (x.diff() > (x.max() - x.min()) / 100).cumsum()
    place = x.groupby(group).cumcount() - (x.groupby(group).transform("size") - 1) / 2
    return 11 * place.sort_index()


def _draw_paper(axis: Axes, points: pd.DataFrame, looks: dict, words: str) -> None:
    """The paper's AP, row by row; nothing if it prints none of this kind."""
    kind, points = points["kind"].iloc[0], points.dropna(subset="paper")
    if points.empty:
        axis.set_axis_off()
        return
    for place, row in enumerate(_rows(points)):
        (point,) = axis.plot(place, row["paper"], **_hollow(looks[row["variant"]]))
        style.tip(point, f"{row['variant']}\n{kind} AP {row['paper']:.1f}, {words}")
    axis.set_xlim(-0.5, len(points) - 0.5)
    axis.set_xticks([])
    axis.set_xlabel(f"{words}, row by row")
    axis.set_ylabel(f"{kind} AP")
    axis.margins(y=0.15)


def _paper(results: Results) -> _Paper | None:
    """On the paper's data its AP of our own size, else of the first that the table has."""
    data, same = paper_data(results)
    own = set(results.table["size"])
    for size in ("", *PAPER_SIZES):
        values = results.table.get(paper_column("box", size), pd.Series(dtype=float))
        if values.notna().any() and (not same or size in {"", *own}):
            name = size.replace("vit", "ViT").replace("-b", "-B").replace("-l", "-L")
            return _Paper(size, f"paper, {data}" + f", {name}" * bool(size), same)
    return None


# ---- Reach -------------------------------------------------------------------------------------


def reach_curve(results: Results, path: Path) -> list[Path]:
    """Share of found objects whose colour is right against the windows to the nearest object that
    shows it: mean over seeds, from the lowest to the highest seed. Runs that did not learn the cue
    have a curve of their own."""
    if results.records.empty:
        return []
    curves = reach.curves(results.records)
    if curves.empty:
        return []
    style.use()
    looks = _looks(results)
    names = [variant for variant in looks if variant in set(curves["variant"])]
    places = reach.distances(results.records)
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    axis.axhline(reach.CHANCE, color=style.GREY, linestyle=":", linewidth=1)
    axis.annotate(
        "chance",
        (1, reach.CHANCE),
        (4, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="center",
        color=style.GREY,
    )
    for (variant, learned), curve in curves.groupby(["variant", "cue_learned"], sort=False):
        aside = 0.5 * ((names.index(variant) + 0.5) / len(names) - 0.5)
        x = curve["distance"].map(places.index) + aside
        look = _marker(looks[variant]) | dict(linestyle=looks[variant]["linestyle"], markersize=7)
        if not learned:
            look |= _CROSS | dict(linestyle=":", mec=look["color"])
        (line,) = axis.plot(x, curve["right"], linewidth=1.4, **look)
        shares = ", ".join(f"{share:.2f}" for share in curve["right"])
        style.tip(line, f"{variant}\n{shares}" + f"\n{reach.MARK}" * (not learned))
        if curve["seeds"].max() > 1:
            ends = [curve["right"] - curve["low"], curve["high"] - curve["right"]]
            bar = dict(ecolor=look["color"], elinewidth=1.2, capsize=2)
            axis.errorbar(x, curve["right"], ends, fmt="none", **bar)
    axis.set_xticks(range(len(places)), [_PLACES.get(place, place) for place in places])
    axis.set_xlim(-0.5, len(places) - 0.5)
    axis.set_ylim(min(0.4, curves["low"].min()) - 0.02, 1.02)
    axis.grid(False, axis="x")
    axis.set_xlabel("windows to the nearest object that shows the colour")
    axis.set_ylabel("share with the right colour")
    _title(figure, results, "reach")
    signs = {}
    if curves["seeds"].max() > 1:
        signs["lowest to highest seed"] = dict(marker="|", markersize=14)
    if not curves["cue_learned"].all():
        signs[_MARK] = _CROSS | dict(linestyle=":")
    _legend(figure, {name: looks[name] for name in names}, signs, lines=True)
    return style.save(figure, path, curves)


# ---- AP by object size -------------------------------------------------------------------------


def ap_by_size(results: Results, path: Path) -> list[Path]:
    """AP of COCO's small, medium and large objects: mean and standard deviation over seeds."""
    columns = [f"{figure}_{kind}" for figure in _OBJECTS for kind in KINDS]
    table = results.table.dropna(subset=columns, how="all")
    if table.empty:
        return []
    style.use()
    looks = _looks(results)
    kinds = _kinds(table)
    figure, panels = plt.subplots(
        1, len(kinds), figsize=(4 * len(kinds), 4), squeeze=False, layout="constrained"
    )
    rows = []
    for axis, kind in zip(panels[0], kinds, strict=True):
        for i, row in enumerate(_rows(table)):
            look = looks[row["variant"]]
            for place, (ap, objects) in enumerate(_OBJECTS.items()):
                mean, std = row[f"{ap}_{kind}"], row[f"{ap}_{kind}_std"]
                if pd.isna(mean):
                    continue
                point = dict(kind=kind, variant=row["variant"], objects=objects.split()[0])
                rows.append({**point, "ap": mean, "std": std, "seeds": row["seeds"]})
                x = place + 0.7 * ((i + 0.5) / len(table) - 0.5)
                _draw_mean(axis, x, mean, std, look)
                style.tip(axis.lines[-1], f"{row['variant']}\n{kind} AP {mean:.1f}, {objects}")
        axis.set_xticks(range(len(_OBJECTS)), _OBJECTS.values())
        axis.grid(False, axis="x")
        axis.set_xlabel("objects")
        axis.set_ylabel(f"{kind} AP, {_data(results)}")
    _title(figure, results, "AP by object size")
    several = (table["seeds"] > 1).any()
    signs = {"± 1 std over seeds": dict(marker="|", markersize=14)} if several else {}
    _legend(figure, {name: looks[name] for name in table["variant"]}, signs)
    return style.save(figure, path, pd.DataFrame(rows))


# ---- Learning curves ---------------------------------------------------------------------------


def learning_curves(results: Results, path: Path) -> list[Path]:
    """Total loss of training, of detectors with other losses in other panels: mean over seeds, and
    from the lowest to the highest seed. Each point is the mean over a hundredth of the run."""
    curves = []
    for run in _rows(results.records):
        losses = _losses(Path(run["path"]).with_name(METRICS))
        if not losses.empty:
            part = losses["iteration"] * _BINS // (losses["iteration"].max() + 1)
            curve = losses.groupby(part).mean().rename_axis("part").reset_index()
            curves.append(curve.assign(variant=run["variant"], detector=_detector(run["config"])))
    if not curves:
        return []
    curves = (
        pd.concat(curves)
        .groupby(["detector", "variant", "part"], sort=False)
        .agg(
            iteration=("iteration", "mean"),
            loss=("loss", "mean"),
            low=("loss", "min"),
            high=("loss", "max"),
            seeds=("loss", "size"),
        )
        .reset_index()
        .drop(columns="part")
    )
    style.use()
    looks = _looks(results)
    detectors = curves["detector"].unique()
    width = 4 * max(len(detectors), 1.5)
    figure, panels = plt.subplots(
        1, len(detectors), figsize=(width, 4), squeeze=False, layout="constrained"
    )
    for axis, detector in zip(panels[0], detectors, strict=True):
        _draw_curves(axis, curves[curves["detector"] == detector], looks)
        if len(detectors) > 1:
            axis.set_title(detector)
    _title(figure, results, "learning curves")
    signs = {}
    if curves["seeds"].max() > 1:
        signs["lowest to highest seed"] = dict(linestyle="-", linewidth=9, alpha=0.2)
    _legend(figure, {name: looks[name] for name in curves["variant"].unique()}, signs, lines=True)
    return style.save(figure, path, curves)


def _draw_curves(axis: Axes, curves: pd.DataFrame, looks: dict) -> None:
    for variant, curve in curves.groupby("variant", sort=False):
        look, x = looks[variant], curve["iteration"]
        (line,) = axis.plot(x, curve["loss"], **look, **_some_markers(curve))
        style.tip(line, f"{variant}\nloss {curve['loss'].iloc[-1]:.3f} at the end")
        if curve["seeds"].max() > 1:
            band = dict(color=look["color"], alpha=0.12, linewidth=0)
            axis.fill_between(x, curve["low"], curve["high"], **band)
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("iteration")
    axis.set_ylabel("total loss")


def _losses(file: Path) -> pd.DataFrame:
    """Iteration and total loss of a run that was trained; the later ones of what was repeated."""
    losses = {}
    for line in file.read_text().splitlines() if file.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:  # what a run was writing as it was interrupted
            continue
        if "total_loss" in entry:
            losses[entry["iteration"]] = entry["total_loss"]
    return pd.DataFrame(sorted(losses.items()), columns=["iteration", "loss"])


def _detector(config: dict) -> str:
    """The name of the part of a detector that says what its losses are."""
    model = config.get("model", {})
    return model.get("roi_heads", model).get("_target_", "").rpartition(".")[2]


# ---- Cost against input size -------------------------------------------------------------------


def cost_vs_input_size(results: Results, path: Path) -> list[Path]:
    """MACs of each encoder of the study against the side of a square image: in all, and per pixel.

    In closed form (`analysis.formulas`) where that gives what the record counted; an encoder that
    the formulas do not cover is a point at its recorded size. Encoders of the same cost are one.
    """
    if results.records.empty:
        return []
    names: dict[tuple[tuple[int, int], ...], list[str]] = {}
    for run in _rows(results.records.groupby("variant", sort=False).head(1)):
        curve = _encoder_macs(run, _SIDES[results.manifest["scale"]])
        if curve:
            names.setdefault(curve, []).append(run["variant"])
    if not names:
        return []
    style.use()
    looks = _looks(results)
    figure, panels = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
    rows, shown = [], {}
    for curve, variants in names.items():
        words = textwrap.fill(
            ", ".join(variants), 24, break_on_hyphens=False, break_long_words=False
        )
        look = shown[words] = looks[variants[0]]
        sides, macs = (pd.Series(values, dtype=float) for values in zip(*curve, strict=True))
        rows += [dict(encoder=", ".join(variants), side_px=s, macs=m) for s, m in curve]
        for axis, values in zip(panels, (macs / 1e9, macs / sides**2 / 1e3), strict=True):
            (line,) = axis.plot(sides, values, **look, **_some_markers(curve))
            style.tip(line, words)
    trained = {tuple(size) for size in results.records["input_size"].dropna()}
    for axis, label in zip(panels, ("GMACs of the encoder", "kMACs per pixel"), strict=True):
        axis.set_xlabel("side of the image, pixels")
        axis.set_ylabel(label)
        for height, width in trained:
            axis.axvline((height * width) ** 0.5, color=style.GREY, linestyle=":", linewidth=1)
    panels[0].set_xscale("log", base=2)
    panels[0].set_yscale("log")
    panels[0].xaxis.set_major_formatter("{x:.0f}")
    panels[1].set_ylim(bottom=0)
    _title(figure, results, "cost against input size")
    _legend(figure, shown, {"as trained": dict(linestyle=":")}, lines=True)
    return style.save(figure, path, pd.DataFrame(rows))


def _encoder_macs(run: dict[str, Any], sides: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """(side, MACs) of a run's encoder; none if nothing is recorded of it."""
    if pd.isna(run["encoder_macs"]):
        return ()
    # They take seconds to import, which the table and plot of a study do not need.
    from backbones import SIZES

    from . import formulas

    backbone = run["config"].get("model", {}).get("backbone", {})
    height, width = run["input_size"]
    words = inspect.signature(formulas.encoder).parameters.keys() & backbone.keys() - {"size"}

    def macs(height: int, width: int) -> int:
        own = {word: backbone[word] for word in words}
        parts = formulas.encoder(**SIZES[backbone["size"]] | own, size=(height, width))
        return formulas.total(parts.values()).macs

    try:
        known = backbone["propagation"] in _PROPAGATIONS
        if known and macs(height, width) == run["encoder_macs"]:
            return tuple((side, macs(side, side)) for side in sides)
    except KeyError:  # no plain ViT, or with a stem or conv block of one's own
        pass
    return ((round((height * width) ** 0.5), int(run["encoder_macs"])),)


# ---- Cost against the count of global blocks ---------------------------------------------------


def cost_vs_count(results: Results, path: Path) -> list[Path]:
    """Time per training image and peak memory against the count of global blocks, of a study that
    has at least three counts: mean and standard deviation over seeds."""
    runs = results.records
    if runs.empty:
        return []
    words = [config.get("model", {}).get("backbone", {}) for config in runs["config"]]
    counts = [
        {"none": 0, "global": w.get("count")}.get(w.get("propagation"), float("nan")) for w in words
    ]
    runs = runs.assign(count=pd.Series(counts, index=runs.index, dtype=float))
    runs = runs.assign(milliseconds=1000 / runs["images_per_second"].astype(float))
    runs = runs.dropna(subset=["count", "milliseconds", "peak_memory_mib"])
    if runs["count"].nunique() < 3:
        return []
    measured = ["milliseconds", "peak_memory_mib"]
    groups = runs.groupby(["size", "variant", "count"], sort=False)[measured]
    table = groups.agg(["mean", "std"]).set_axis(
        [f"{column}_{of}" for column in measured for of in ("mean", "std")], axis=1
    )
    table = table.assign(seeds=groups.size()).reset_index().sort_values(["size", "count"])
    style.use()
    figure, panels = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
    unit, unit_name = _MEMORY.unit(table["peak_memory_mib_mean"])
    looks = style.looks(table["size"].unique())
    for axis, column, factor in zip(panels, measured, (1, 1 / unit), strict=True):
        for size, line in table.groupby("size", sort=False):
            axis.plot(
                line["count"], line[f"{column}_mean"] * factor, **looks[size] | dict(marker="")
            )
            for row in _rows(line):
                mean, std = row[f"{column}_mean"] * factor, row[f"{column}_std"] * factor
                _draw_mean(axis, row["count"], mean, std, looks[size])
                style.tip(axis.lines[-1], f"{row['variant']}, {size}\n{mean:.4g}")
        axis.set_ylim(0, 1.1 * axis.get_ylim()[1])
        axis.set_xticks(sorted(table["count"].unique()))
        axis.set_xlabel("count of global blocks")
    panels[0].set_ylabel("time per training image, ms")
    panels[1].set_ylabel(_MEMORY.label.format(unit_name))
    _title(figure, results, "cost against the count of global blocks", measured=True)
    if len(looks) > 1:
        _legend(figure, looks, {}, lines=True)
    return style.save(figure, path, table)


# ---- Pieces ------------------------------------------------------------------------------------


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return frame.to_dict("records")


def _kinds(table: pd.DataFrame) -> list[str]:
    return [kind for kind in KINDS if table[f"ap_{kind}"].notna().any()]


def _looks(results: Results) -> dict[str, dict]:
    """The same for a variant in every plot of a study."""
    return style.looks(results.table["variant"])


def _marker(look: dict) -> dict:
    return look | dict(linestyle="none", markersize=9, mec="white", mew=0.5)


def _some_markers(curve: Sized) -> dict:
    """Eight on a line, to tell it from others."""
    return dict(markersize=6, markevery=max(len(curve) // 8, 1))


def _short(name: str, letters: int = 24) -> str:
    """A name that fits beside an axis."""
    return name if len(name) <= letters else name[: letters - 1] + "…"


def _hollow(look: dict) -> dict:
    """Of what is published."""
    return _marker(look) | dict(mfc="white", mec=look["color"], mew=1.5)


def _draw_mean(axis: Axes, x: float, mean: float, std: float, look: dict) -> None:
    """A point and its standard deviation, if it has one; the point is the axis's last line."""
    if pd.notna(std):
        axis.errorbar(x, mean, std, fmt="none", ecolor=look["color"], elinewidth=1.4, capsize=3)
    axis.plot(x, mean, **_marker(look))


def _title(figure: Figure, results: Results, what: str, measured: bool = False) -> None:
    """What, of which models, and where it was measured and what memory is of, each once."""
    sizes = ", ".join(filter(None, results.table["size"].unique()))
    lines = [f"{results.manifest['study']}: {what}", f"{sizes}, {results.manifest['scale']} scale"]
    if measured:
        runs = results.records.dropna(subset=["device", "threads"])
        threads = runs["threads"].astype(int).astype(str)
        on = runs["device"] + ", threads: " + threads + ", memory: " + runs["memory_kind"]
        lines += sorted(set(on))
    letters = int(11 * figure.get_figwidth())  # that fit beside the legend
    text = "\n".join(textwrap.fill(line, letters) for line in lines)
    figure.suptitle(text, x=0.01, ha="left")


def _data(results: Results) -> str:
    """What the AP are of, in words."""
    if results.manifest["scale"] == "mini":
        return "mini set"
    name, same = paper_data(results)
    return name if same else "own set"


def _legend(figure: Figure, looks: dict, signs: dict[str, dict], lines: bool = False) -> None:
    """In a column at the right that the figure gets for it: the rows, then, grey, what else is
    drawn."""
    marks = {name: look if lines else _marker(look) for name, look in looks.items()}
    grey = dict(color=style.GREY, linestyle="none", linewidth=1)
    marks |= {name: grey | sign for name, sign in signs.items()}
    legend = figure.legend(
        handles=[Line2D([], [], label=name, **mark) for name, mark in marks.items()],
        ncols=1 + len(marks) // 20,
        loc="outside right upper",
        fontsize=10,
        frameon=False,
    )
    width, height = figure.get_size_inches()
    box = legend.get_window_extent().padded(10)
    figure.set_size_inches(width + box.width / figure.dpi, max(height, box.height / figure.dpi))


ALL: dict[str, Callable[[Results, Path], list[Path]]] = {
    plot.__name__: plot
    for plot in (
        forest,
        seeds,
        ap_vs_macs,
        ap_vs_params,
        ap_vs_time,
        ap_vs_memory,
        reach_curve,
        ap_by_size,
        learning_curves,
        cost_vs_input_size,
        cost_vs_count,
    )
}
