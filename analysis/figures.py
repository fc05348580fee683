"""Figures 3, 4 and 5 of the paper: AP against cost, the published points beside our own.

Published points are grey and hollow, our own coloured and filled. The marker is the backbone, the
line style its pre-training, the letter at a point its size. Our rows without AP are marked at their
cost on the x axis.
"""

from itertools import chain, cycle, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from . import paper, style
from .style import plt

DATASETS = ("coco", "lvis")
DETECTORS = ("Mask R-CNN", "Cascade Mask R-CNN", "RetinaNet")
_NUMBERS = ["ap_box", "ap_mask", "ap_mask_rare", "params", "macs", "test_ms", "seeds", "ap_box_std"]
OURS = ["model", "pretrain", "detector", "dataset", *_NUMBERS]

_COSTS = ("params", "macs", "test_ms")
_MARKERS = {"Swin": "s", "MViTv2": "^", "ViT": "o"}
_LINES = {"1K, sup": ":", "21K, sup": "--", "1K, MAE": "-"}


class _Row(NamedTuple):
    """A row of panels. Each has axes of its own: no two data sets or detectors share one."""

    dataset: str
    detector: str
    ap: str  # column
    label: str

    def points(self, frame: pd.DataFrame) -> pd.DataFrame:
        return frame[(frame["dataset"] == self.dataset) & (frame["detector"] == self.detector)]


def figure3(ours: pd.DataFrame, path: Path) -> list[Path]:
    """Box AP on COCO of Mask R-CNN against parameters, MACs and test time.

    Args:
        ours: our own rows, may be empty. Its columns are `OURS`: model ("ViT-B"), pretrain
            ("1K, MAE"), detector (of `DETECTORS`), dataset (of `DATASETS`), AP in 0..100, params
            and macs (absolute), test_ms (ms per image), number of seeds, standard deviation of box
            AP over them; NaN for what was not measured. `device`, where test_ms was measured, is
            optional.
        path: without suffix; .png, .svg, and .csv with the points are written.

    Returns:
        The files written.

    Raises:
        ValueError: a column, model or pretrain is missing, or a dataset or detector is not known.
    """
    rows = [_Row("coco", "Mask R-CNN", "ap_box", "box AP, COCO val2017")]
    title = "Figure 3: Mask R-CNN on COCO, accuracy against size, MACs and test time"
    return _draw(rows, _COSTS, paper.figure(3).assign(origin="paper"), ours, path, title)


def figure4(ours: pd.DataFrame, path: Path) -> list[Path]:
    """Mask AP on LVIS against parameters, MACs and test time; arguments as of `figure3`.

    The paper prints no number of a hierarchical backbone here. Cascade Mask R-CNN is added, where
    detectron2 has released models of all.
    """
    rows = [
        _Row("lvis", "Mask R-CNN", "ap_mask", "mask AP, LVIS v1 val"),
        _Row("lvis", "Mask R-CNN", "ap_mask_rare", "mask AP, rare classes"),
        _Row("lvis", "Cascade Mask R-CNN", "ap_mask", "mask AP, Cascade"),
    ]
    cascade = rows[2].points(paper.released("lvis")).assign(origin="released model")
    published = pd.concat([paper.figure(4).assign(origin="paper"), cascade])
    title = (
        "Figure 4: Mask R-CNN on LVIS; with Cascade, detectron2's released models\n"
        "ViT-H of Mask R-CNN is from Meta's blog; published costs are the same detector's on COCO "
        "(Table 9), released models' time their own"
    )
    return _draw(rows, _COSTS, published, ours, path, title)


def figure5(ours: pd.DataFrame, path: Path) -> list[Path]:
    """Box AP on COCO of RetinaNet against parameters; arguments as of `figure3`.

    The paper prints none of its points, only how far two of them are apart.
    """
    rows = [_Row("coco", "RetinaNet", "ap_box", "box AP, COCO val2017")]
    gain = paper.load("prose").set_index("key").at["retinanet_vit_h_gain", "value"]
    title = (
        "Figure 5: RetinaNet on COCO, accuracy against size\n"
        f"the paper prints no point, only that ViT-H is {gain:.1f} box AP above MViTv2-H"
    )
    return _draw(rows, _COSTS[:1], paper.figure(5).assign(origin="paper"), ours, path, title)


def write(ours: pd.DataFrame, folder: Path) -> list[Path]:
    """Figures 3, 4 and 5 as `folder`/figure-3.png, .svg and .csv, ...; the files written.

    Args:
        ours: as of `figure3`.
    """
    written = []
    for number, draw in ((3, figure3), (4, figure4), (5, figure5)):
        written += draw(ours, folder / f"figure-{number}")
    return written


def _checked(ours: pd.DataFrame) -> pd.DataFrame:
    if ours.empty:
        return pd.DataFrame(columns=OURS)
    if missing := [column for column in OURS if column not in ours]:
        raise ValueError(
            f"a figure's rows lack {', '.join(missing)}: add the columns, NaN for what is unknown"
        )
    for column in ("model", "pretrain"):
        if ours[column].isna().any():
            raise ValueError(f"a figure's row has no {column}: write one, of pretrain maybe 'none'")
    for column, known in (("dataset", DATASETS), ("detector", DETECTORS)):
        for value in ours[column]:
            if value not in known:
                raise ValueError(f"a figure's rows have {column} {value!r}: use {', '.join(known)}")
    return ours


def _draw(
    rows: list[_Row],
    costs: tuple[str, ...],
    published: pd.DataFrame,
    ours: pd.DataFrame,
    path: Path,
    title: str,
) -> list[Path]:
    ours = _checked(ours).assign(origin="ours")
    points = pd.concat([published, ours]).astype(dict.fromkeys(_NUMBERS, float))
    apart = {(row.dataset, row.detector): row for row in rows}
    points = pd.concat([row.points(points) for row in apart.values()])
    points = points.assign(family=points["model"].str.split("-").str[0])

    style.use()
    size = (max(4.4 * len(costs), 7), 3.8 * len(rows) + 1.4)
    figure, panels = plt.subplots(
        len(rows), len(costs), figsize=size, squeeze=False, layout="constrained"
    )
    styles = _styles(points)
    names, handles = {}, {}
    for row, axes in zip(rows, panels, strict=True):
        for axis, cost in zip(axes, costs, strict=True):
            names[axis] = _panel(axis, row, cost, row.points(points), styles)
            handles |= {h.get_label(): h for h in axis.get_legend_handles_labels()[0]}
        axes[0].set_ylabel(row.label)
    if handles:
        order = sorted(handles, key=lambda label: ("ours" in label) + ("cost only" in label))
        handles = [handles[label] for label in order]
        columns = min(3, len(costs))
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=10)
    figure.suptitle(title + _seeds(rows, points), fontsize=13)
    figure.draw_without_rendering()  # lays the panels out: distances in them are known from here
    figure.set_layout_engine("none")
    for axis in names:
        _name_points(axis, names[axis])
    return style.save(figure, path, points.drop(columns="family"))


def _seeds(rows: list[_Row], points: pd.DataFrame) -> str:
    """How many runs our points are the mean of, for the title."""
    seeds = pd.concat([row.points(points).dropna(subset=row.ap)["seeds"] for row in rows]).dropna()
    if seeds.empty:
        return ""
    low, high = seeds.min(), seeds.max()
    number = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    bars = any(row.ap == "ap_box" for row in rows) and points["ap_box_std"].notna().any()
    return f"\nours: mean of {number} seed{'s' * int(high > 1)}" + ", bars: ± 1 std" * bool(bars)


def _styles(points: pd.DataFrame) -> dict[tuple[str, str], dict]:
    """Marker, line and color of each backbone and pre-training; the paper's are always the same."""
    families = dict.fromkeys(chain(_MARKERS, points["family"]))
    markers = dict(zip(families, chain(_MARKERS.values(), cycle("DvPX")), strict=False))
    colors = dict(zip(families, cycle(sns.color_palette()), strict=False))
    lines = dict.fromkeys(points["pretrain"], "-.") | _LINES
    return {
        (family, pretrain): dict(
            marker=markers[family], linestyle=lines[pretrain], color=colors[family]
        )
        for family, pretrain in set(zip(points["family"], points["pretrain"], strict=True))
    }


def _panel(axis: Axes, row: _Row, cost: str, points: pd.DataFrame, styles: dict) -> list[tuple]:
    """One line per backbone, pre-training and origin. Returns the names of its points."""
    unit, label = _unit(cost, points)
    axis.set_xlabel(label)
    points = points.assign(x=points[cost] / unit).dropna(subset="x")
    has_ap = points[row.ap].notna()
    if not has_ap.any():
        axis.set_yticks([])
        axis.text(
            0.5,
            0.5,
            "no point is published,\nnone of our own has AP",
            transform=axis.transAxes,
            ha="center",
            va="center",
            backgroundcolor="white",
        )
    if points.empty:
        axis.set_xticks([])
    names = []
    series = ["origin", "family", "pretrain"]
    for (origin, family, pretrain), line in points[has_ap].groupby(series, sort=False):
        line, own = line.sort_values("x"), origin == "ours"
        look = styles[family, pretrain]
        std = line.get(f"{row.ap}_std") if own else None
        axis.errorbar(
            line["x"],
            line[row.ap],
            yerr=None if std is None or std.isna().all() else std,
            capsize=4,
            markersize=8,
            label=f"{family}, {pretrain} ({origin})",
            **look | ({} if own else dict(color=style.GREY, markerfacecolor="white")),
        )
        sizes = line["model"].str.removeprefix(f"{family}-")
        color = look["color"] if own else style.GREY
        names += [(*at, color) for at in zip(line["x"], line[row.ap], sizes, strict=True)]
    for (_, family, pretrain), line in points[~has_ap & (points["origin"] == "ours")].groupby(
        series, sort=False
    ):
        axis.plot(
            line["x"],
            [0] * len(line),
            transform=axis.get_xaxis_transform(),
            clip_on=False,
            zorder=4,
            markersize=7,
            label=f"{family}, {pretrain} (ours, cost only)",
            **styles[family, pretrain] | dict(linestyle="none"),
        )
    axis.margins(x=0.12, y=0.15)
    return names


def _name_points(axis: Axes, names: list[tuple[float, float, str, str]]) -> None:
    """Write (x, y, text, color) beside the points, each on a side with room."""

    def place(xy: np.ndarray) -> np.ndarray:
        return axis.transData.transform(xy) * 72 / axis.figure.dpi  # in points, as offsets are

    def nearest(letters: np.ndarray, others: list) -> np.ndarray:
        """The least distance of any of a side's letters, per side, to any of `others`."""
        apart = letters[:, :, None] - np.array(others).reshape(-1, 2)
        return np.linalg.norm(apart, axis=3).min(axis=(1, 2), initial=np.inf)

    taken, lines = [], []
    for container in axis.containers:
        line, _, bars = container.lines
        taken += list(place(line.get_xydata()))
        segments = [bar for drawn in bars for bar in drawn.get_segments()]
        for ends in [*pairwise(line.get_xydata()), *segments]:
            lines += list(np.linspace(*place(np.array(ends)), 50))
    left, right = axis.bbox.intervalx * 72 / axis.figure.dpi
    angles = np.arange(16) * np.pi / 8
    for x, y, text, color in sorted(names, key=lambda name: -len(name[2])):
        half = 3 * len(text)  # of its width
        sides = np.stack([np.cos(angles) * (9 + half), np.sin(angles) * 12], axis=1)
        letters = np.stack([np.arange(3 - half, half, 6), np.zeros(len(text))], axis=1)
        at = place(np.array([x, y])) + sides[:, None] + letters
        room = np.minimum(nearest(at, taken), 2 * nearest(at, lines))  # rather over a line
        room = room.clip(max=10)  # is enough; of enough, the first, on the right
        room[(at[:, 0, 0] - 3 < left) | (at[:, -1, 0] + 3 > right)] = 0  # would leave the panel
        best = room.argmax()
        taken += list(at[best])
        axis.annotate(
            text,
            (x, y),
            xytext=sides[best],
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=10,
            color=color,
        )


def _unit(cost: str, points: pd.DataFrame) -> tuple[float, str]:
    """What the column is divided by, and the axis's label."""
    ours = points[points["origin"] == "ours"]
    published = len(ours) < len(points)
    if cost == "params":
        return 1e6, "M parameters of the detector"
    if cost == "macs":
        unit, name = (1e9, "GMACs") if points["macs"].max() < 1e11 else (1e12, "TMACs")
        return unit, f"{name}, one image" + " (the paper's FLOPs)" * published
    on = ["published: A100"] * published
    if "device" in ours:
        devices = sorted(set(ours.loc[ours[cost].notna(), "device"].dropna()))
        on += [f"ours: {', '.join(devices)}"] * bool(devices)
    return 1, "test time, ms per image" + (f"\n({'; '.join(on)})" if on else "")
