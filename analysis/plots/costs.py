"""AP against what it costs: MACs, parameters, time, memory."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.transforms import ScaledTranslation

from .. import reach, style
from ..results import KINDS, ONE_SEED, PAPER_SIZES, Results, paper_column, paper_data
from ..style import plt
from . import pieces


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
MEMORY = _Cost(
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
    return _ap_vs_cost(results, path, MEMORY)


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
    looks = pieces.looks(results)
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
        above.set_ylabel(f"{kind} AP, {pieces.data(results)}")
        if beside:
            _draw_paper(below, part, looks, paper.words)
    pieces.title(figure, results, f"AP against {cost.name}", measured=not cost.counted)
    points, signs = pd.concat(parts), {}
    if points["low"].notna().any():
        one_seed = ",\nof one seed:\nover images alone" * bool((points["seeds"] == 1).any())
        signs["95 % interval,\ncut at the frame" + one_seed] = dict(marker="|", markersize=14)
    if (table["seeds"] > 1).any():
        signs["single run"] = dict(marker=".", markersize=7)
    if marked.any():
        signs[pieces.NOT_LEARNED] = pieces.CROSS
    if points["pareto_front"].any():
        signs["Pareto front,\nas far as decided"] = dict(
            marker="o", markersize=14, mfc="none", linestyle="--"
        )
    if on_axes:
        signs[paper.words.replace(", ", ",\n", 1)] = dict(marker="o", markersize=8, mfc="white")
    pieces.legend(figure, {name: looks[name] for name in table["variant"]}, signs)
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
    for row, right in zip(points.to_dict("records"), _side_by_side(points["x"]), strict=True):
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
            (crosses,) = axis.plot(*at, **pieces.CROSS, color=color, linestyle="none", **place)
            style.tip(crosses, f"{row['variant']}\n{reach.MARK}")
        if row["pareto_front"]:
            ring = dict(markersize=15, mfc="none", mec=style.GREY, mew=1)
            axis.plot(x, row["ap"], "o", zorder=2, **ring, **place)
        if with_paper:
            axis.plot(x, row["paper"], zorder=3, **pieces.hollow(look), **place)
        (point,) = axis.plot(x, row["ap"], zorder=4, **pieces.marker(look), **place)
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
    for place, row in enumerate(points.to_dict("records")):
        (point,) = axis.plot(place, row["paper"], **pieces.hollow(looks[row["variant"]]))
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
