"""Reach, AP by object size, and learning curves."""

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from experiments.records import metrics

from .. import reach, style
from ..results import KINDS, Results
from ..style import plt
from . import pieces

# Distances in words; others are numbers of windows.
_PLACES = {
    "self": "shown\non itself",
    "0": "same\nwindow",
    "convs": "read by\nconvs",
    "1": "next\nwindow",
}
_OBJECTS = {"aps": "small\n(below 32² px)", "apm": "medium", "apl": "large\n(above 96² px)"}
_BINS = 100  # of a learning curve


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
    looks = pieces.looks(results)
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
        look = pieces.marker(looks[variant]) | dict(
            linestyle=looks[variant]["linestyle"], markersize=7
        )
        if not learned:
            look |= pieces.CROSS | dict(linestyle=":", mec=look["color"])
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
    pieces.title(figure, results, "reach")
    signs = {}
    if curves["seeds"].max() > 1:
        signs["lowest to highest seed"] = dict(marker="|", markersize=14)
    if not curves["cue_learned"].all():
        signs[pieces.NOT_LEARNED] = pieces.CROSS | dict(linestyle=":")
    pieces.legend(figure, {name: looks[name] for name in names}, signs, lines=True)
    return style.save(figure, path, curves)


def ap_by_size(results: Results, path: Path) -> list[Path]:
    """AP of COCO's small, medium and large objects: mean and standard deviation over seeds."""
    columns = [f"{figure}_{kind}" for figure in _OBJECTS for kind in KINDS]
    table = results.table.dropna(subset=columns, how="all")
    if table.empty:
        return []
    style.use()
    looks = pieces.looks(results)
    kinds = pieces.kinds(table)
    figure, panels = plt.subplots(
        1, len(kinds), figsize=(4 * len(kinds), 4), squeeze=False, layout="constrained"
    )
    rows = []
    for axis, kind in zip(panels[0], kinds, strict=True):
        for i, row in enumerate(table.to_dict("records")):
            look = looks[row["variant"]]
            for place, (ap, objects) in enumerate(_OBJECTS.items()):
                mean, std = row[f"{ap}_{kind}"], row[f"{ap}_{kind}_std"]
                if pd.isna(mean):
                    continue
                point = dict(kind=kind, variant=row["variant"], objects=objects.split()[0])
                rows.append({**point, "ap": mean, "std": std, "seeds": row["seeds"]})
                x = place + 0.7 * ((i + 0.5) / len(table) - 0.5)
                pieces.draw_mean(axis, x, mean, std, look)
                style.tip(axis.lines[-1], f"{row['variant']}\n{kind} AP {mean:.1f}, {objects}")
        axis.set_xticks(range(len(_OBJECTS)), _OBJECTS.values())
        axis.grid(False, axis="x")
        axis.set_xlabel("objects")
        axis.set_ylabel(f"{kind} AP, {pieces.data(results)}")
    pieces.title(figure, results, "AP by object size")
    several = (table["seeds"] > 1).any()
    signs = {"± 1 std over seeds": dict(marker="|", markersize=14)} if several else {}
    pieces.legend(figure, {name: looks[name] for name in table["variant"]}, signs)
    return style.save(figure, path, pd.DataFrame(rows))


def learning_curves(results: Results, path: Path) -> list[Path]:
    """Total loss of training, of detectors with other losses in other panels: mean over seeds, and
    from the lowest to the highest seed. Each point is the mean over a hundredth of the run."""
    curves = []
    for run in results.records.to_dict("records"):
        losses = _losses(Path(run["path"]).parent)
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
    looks = pieces.looks(results)
    detectors = curves["detector"].unique()
    width = 4 * max(len(detectors), 1.5)
    figure, panels = plt.subplots(
        1, len(detectors), figsize=(width, 4), squeeze=False, layout="constrained"
    )
    for axis, detector in zip(panels[0], detectors, strict=True):
        _draw_curves(axis, curves[curves["detector"] == detector], looks)
        if len(detectors) > 1:
            axis.set_title(detector)
    pieces.title(figure, results, "learning curves")
    signs = {}
    if curves["seeds"].max() > 1:
        signs["lowest to highest seed"] = dict(linestyle="-", linewidth=9, alpha=0.2)
    shown = {name: looks[name] for name in curves["variant"].unique()}
    pieces.legend(figure, shown, signs, lines=True)
    return style.save(figure, path, curves)


def _draw_curves(axis: Axes, curves: pd.DataFrame, looks: dict) -> None:
    for variant, curve in curves.groupby("variant", sort=False):
        look, x = looks[variant], curve["iteration"]
        (line,) = axis.plot(x, curve["loss"], **look, **pieces.some_markers(curve))
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


def _losses(folder: Path) -> pd.DataFrame:
    """Iteration and total loss of a run that was trained; the later ones of what was repeated."""
    losses = {e["iteration"]: e["total_loss"] for e in metrics(folder) if "total_loss" in e}
    return pd.DataFrame(sorted(losses.items()), columns=["iteration", "loss"])


def _detector(config: dict) -> str:
    """The name of the part of a detector that says what its losses are."""
    model = config.get("model", {})
    return model.get("roi_heads", model).get("_target_", "").rpartition(".")[2]
