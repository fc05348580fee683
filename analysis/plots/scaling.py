"""Cost against the size of the image and against the count of global blocks."""

import inspect
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from .. import style
from ..results import Results
from ..style import plt
from . import pieces
from .costs import MEMORY

_SIDES = {"mini": range(64, 513, 8), "small": range(128, 1025, 16), "coco": range(256, 1537, 16)}
_PROPAGATIONS = ("none", "global", "conv", "shifted")  # that the closed formulas know


def cost_vs_input_size(results: Results, path: Path) -> list[Path]:
    """MACs of each encoder of the study against the side of a square image: in all, and per pixel.

    In closed form (`analysis.formulas`) where that gives what the record counted; an encoder that
    the formulas do not cover is a point at its recorded size. Encoders of the same cost are one.
    """
    if results.records.empty:
        return []
    names: dict[tuple[tuple[int, int], ...], list[str]] = {}
    for run in results.records.groupby("variant", sort=False).head(1).to_dict("records"):
        curve = _encoder_macs(run, _SIDES[results.manifest["scale"]])
        if curve:
            names.setdefault(curve, []).append(run["variant"])
    if not names:
        return []
    style.use()
    looks = pieces.looks(results)
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
            (line,) = axis.plot(sides, values, **look, **pieces.some_markers(curve))
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
    pieces.title(figure, results, "cost against input size")
    pieces.legend(figure, shown, {"as trained": dict(linestyle=":")}, lines=True)
    return style.save(figure, path, pd.DataFrame(rows))


def _encoder_macs(run: dict[str, Any], sides: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """(side, MACs) of a run's encoder; none if nothing is recorded of it."""
    if pd.isna(run["encoder_macs"]):
        return ()
    # They take seconds to import, which the table and plot of a study do not need.
    from backbones import SIZES

    from .. import formulas

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
    unit, unit_name = MEMORY.unit(table["peak_memory_mib_mean"])
    looks = style.looks(table["size"].unique())
    for axis, column, factor in zip(panels, measured, (1, 1 / unit), strict=True):
        for size, line in table.groupby("size", sort=False):
            axis.plot(
                line["count"], line[f"{column}_mean"] * factor, **looks[size] | dict(marker="")
            )
            for row in line.to_dict("records"):
                mean, std = row[f"{column}_mean"] * factor, row[f"{column}_std"] * factor
                pieces.draw_mean(axis, row["count"], mean, std, looks[size])
                style.tip(axis.lines[-1], f"{row['variant']}, {size}\n{mean:.4g}")
        axis.set_ylim(0, 1.1 * axis.get_ylim()[1])
        axis.set_xticks(sorted(table["count"].unique()))
        axis.set_xlabel("count of global blocks")
    panels[0].set_ylabel("time per training image, ms")
    panels[1].set_ylabel(MEMORY.label.format(unit_name))
    pieces.title(figure, results, "cost against the count of global blocks", measured=True)
    if len(looks) > 1:
        pieces.legend(figure, looks, {}, lines=True)
    return style.save(figure, path, table)
