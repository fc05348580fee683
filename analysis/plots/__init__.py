"""Plots of a study's own finished runs.

Each takes a study's results and a path without suffix and returns what it wrote: .png, .svg, and
.csv, the numbers behind the picture; nothing if the study has none of that kind. `ALL` has them by
the name of their files. AP is in 0..100.
"""

from collections.abc import Callable
from pathlib import Path

from ..results import Results
from .costs import ap_vs_macs, ap_vs_memory, ap_vs_params, ap_vs_time, pareto_front
from .curves import ap_by_size, learning_curves, reach_curve
from .differences import forest, seeds
from .scaling import cost_vs_count, cost_vs_input_size

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
__all__ = ["ALL", "pareto_front", *ALL]
