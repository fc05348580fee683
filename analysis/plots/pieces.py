"""What the plots of a study share: looks, titles, legends."""

import textwrap
from collections.abc import Sized
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.scales import SCALES

from .. import reach, style
from ..results import KINDS, Results, paper_data

# Of runs that did not learn the cue.
NOT_LEARNED = textwrap.fill(reach.MARK, 26)
CROSS = dict(marker="x", markersize=6, mew=1.4, zorder=5)


def rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return frame.to_dict("records")


def kinds(table: pd.DataFrame) -> list[str]:
    return [kind for kind in KINDS if table[f"ap_{kind}"].notna().any()]


def looks(results: Results) -> dict[str, dict]:
    """The same for a variant in every plot of a study."""
    return style.looks(results.table["variant"])


def marker(look: dict) -> dict:
    return look | dict(linestyle="none", markersize=9, mec="white", mew=0.5)


def some_markers(curve: Sized) -> dict:
    """Eight on a line, to tell it from others."""
    return dict(markersize=6, markevery=max(len(curve) // 8, 1))


def short(name: str, letters: int = 24) -> str:
    """A name that fits beside an axis."""
    return name if len(name) <= letters else name[: letters - 1] + "…"


def hollow(look: dict) -> dict:
    """Of what is published."""
    return marker(look) | dict(mfc="white", mec=look["color"], mew=1.5)


def draw_mean(axis: Axes, x: float, mean: float, std: float, look: dict) -> None:
    """A point and its standard deviation, if it has one; the point is the axis's last line."""
    if pd.notna(std):
        axis.errorbar(x, mean, std, fmt="none", ecolor=look["color"], elinewidth=1.4, capsize=3)
    axis.plot(x, mean, **marker(look))


def title(figure: Figure, results: Results, what: str, measured: bool = False) -> None:
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


def data(results: Results) -> str:
    """What the AP are of, in words."""
    scale = SCALES[results.manifest["scale"]]
    if scale.embedded:
        return "mini set"
    name, same = paper_data(results)
    if scale.shortened and not results.manifest.get("own_set"):
        configs = [config for config in results.records["config"] if config]  # foreign: none
        whole = all(config["dataloader"]["test"]["share"] == 1 for config in configs)
        return name if whole else f"a part of {name}"
    return name if same else "own set"


def legend(figure: Figure, looks: dict, signs: dict[str, dict], lines: bool = False) -> None:
    """In a column at the right that the figure gets for it: the rows, then, grey, what else is
    drawn."""
    marks = {name: look if lines else marker(look) for name, look in looks.items()}
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
