"""One style for every plot, and the three files that each becomes: PNG, SVG and the CSV behind it.

Series differ by marker and line as well as by color, so that they do in grey too; the colors are
seaborn's "colorblind" palette without its pink and yellow, which nearly vanish on white.
"""

import html
import re
from collections.abc import Iterable
from itertools import cycle
from pathlib import Path

import matplotlib
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.figure import Figure

_MARKERS = "os^DvPX*<>d"
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_TIP = "tip "  # in front of an artist's id: the rest is what hovering shows
COLORS = [c for i, c in enumerate(sns.color_palette("colorblind")) if i not in (6, 8)]
GREY = "0.35"  # of what is not ours


def use() -> None:
    """Set the style; call it before making a figure."""
    sns.set_theme(style="whitegrid", context="notebook", palette="colorblind")
    plt.rcParams["svg.fonttype"] = "none"  # text stays text: small, and it can be searched


def looks(names: Iterable[str]) -> dict[str, dict]:
    """Color, marker and linestyle of each name, in order."""
    parts = zip(names, cycle(COLORS), cycle(_MARKERS), cycle(_LINES), strict=False)
    return {n: dict(color=c, marker=m, linestyle=line) for n, c, m, line in parts}


def tip(artist: Artist, text: str) -> None:
    """Show `text` when the pointer is over `artist` in the SVG; lines at "\\n"."""
    artist.set_gid(_TIP + text)


def save(figure: Figure, path: Path, data: pd.DataFrame, dpi: int = 150) -> list[Path]:
    """Write a figure and the numbers behind it, and close it.

    The same figure makes the same files.

    Args:
        path: without suffix.

    Returns:
        The .png, the .svg and the .csv.
    """
    written = [path.with_name(path.name + suffix) for suffix in (".png", ".svg", ".csv")]
    plt.rcParams["svg.hashsalt"] = path.name
    figure.savefig(written[0], dpi=dpi)
    figure.set_layout_engine("none")  # is laid out: once will do
    figure.savefig(written[1], dpi=dpi, metadata={"Date": None})
    plt.close(figure)
    written[1].write_text(_with_tips(written[1].read_text()))
    data.to_csv(written[2], index=False)
    return written


def _with_tips(svg: str) -> str:
    """Groups whose id is a tip get it as their title, which browsers show."""

    def title(found: re.Match) -> str:
        text = html.escape(html.unescape(found[2]), quote=False)
        return f'<g class="tip"><title>{text}</title>'

    return re.sub(rf"<g id=([\"']){_TIP}(.*?)\1>", title, svg, flags=re.DOTALL)
