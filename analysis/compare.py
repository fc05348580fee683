"""Two runs side by side: what changed, the difference in AP and how sure it is, which categories
and images moved most, and costs."""

from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from experiments import records
from experiments.data import annotations
from experiments.errors import UserError
from experiments.evaluation import average_precision, matches
from experiments.records import Record

from . import reach
from .bootstrap import Draws, delta_of, of_run, paired
from .categories import names
from .categories import table as of_categories
from .comparable import SAME, flat_config
from .comparable import changes as changed
from .estimates import Estimate
from .text import print_table, with_interval

_COSTS = {
    "params M": ("params", 1e6),
    "GMACs": ("macs", 1e9),
    "train s": ("train_seconds", 1),
    "images/s in training": ("images_per_second", 1),
    "peak memory MiB": ("peak_memory_mib", 1),
}


def read(folder: str | Path) -> Record:
    """The record of a finished run, or of a foreign result.

    Raises:
        UserError: there is none in the folder, or it is broken.
    """
    path = Path(folder) / records.RECORD
    if not path.is_file():
        raise UserError(
            f"no finished run in {folder}: give the folder of a run, "
            "e.g. runs/mini/count/1-vit-mini-seed0-..."
        )
    return records.read(path)


def ap_table(ours: str | Path, base: str | Path, delta: float | None = None) -> pd.DataFrame:
    """The set's AP figures of two finished runs, boxes and masks, a row each.

    Args:
        ours, base: folders of runs, or of foreign results.
        delta: AP in 0..100; smaller differences are of no interest. None: the scale's.

    Returns:
        Columns kind, figure, base, ours, difference, low and high (95 % interval of the difference,
        over images: it is about these trained detectors), verdict ("" if one of them did not learn
        the cue, see `analysis.reach`).

    Raises:
        UserError: no such run, no AP of the same kind, or other images or objects.
    """
    shared = kinds(ours, base)
    if not shared:
        raise UserError(
            f"{ours} and {base} have no AP of the same kind: one has boxes only, the other masks "
            "only. Choose runs that share one"
        )
    runs = [read(folder) for folder in (ours, base)]
    says = not any(reach.marked(run.reach) for run in runs)
    delta = delta_of(runs[1].scale) if delta is None else delta
    rows = []
    for kind in shared:
        drawn, differences = _paired(ours, base, kind)
        for i, (figure, estimate) in enumerate(differences.items()):
            if estimate is None:
                continue
            low, high = estimate.interval()
            rows.append(
                dict(
                    kind=kind,
                    figure=figure,
                    base=drawn[1].values[i],
                    ours=drawn[0].values[i],
                    difference=estimate.value,
                    low=low,
                    high=high,
                    verdict=estimate.verdict(delta) if says else "",
                )
            )
    return pd.DataFrame(rows)


def kinds(ours: str | Path, base: str | Path) -> list[str]:
    """Of "box" and "mask", those that both have figures of."""
    runs = [read(folder) for folder in (ours, base)]
    return [kind for kind in matches.KINDS if all(getattr(run, kind) for run in runs)]


def categories(ours: str | Path, base: str | Path, kind: str = "box") -> pd.DataFrame:
    """AP of each category, those that moved most first: `analysis.categories.table`.

    Raises:
        UserError: as of `ap_table`.
    """
    found = _same(ours, base, kind)
    return most_moved(of_categories(found, names(_truth(ours))), "difference")


def images(ours: str | Path, base: str | Path, kind: str = "box") -> pd.DataFrame:
    """What each image adds to the difference in AP, those that move it most first.

    Returns:
        Columns image (id), file, adds: the difference less what it would be without the image.

    Raises:
        UserError: as of `ap_table`.
    """
    found = _same(ours, base, kind)
    # LVIS names its images by their address.
    files = {
        image["id"]: image.get("file_name") or Path(image.get("coco_url", "")).name
        for image in _truth(ours)["images"]
    }
    whole = [average_precision.figures(run)[0] for run in found]
    less = [average_precision.of_images(run) for run in found]
    adds = (whole[0] - whole[1]) - (less[0] - less[1])
    numbers = found[0].images
    table = pd.DataFrame(dict(image=numbers, file=[files[i] for i in numbers], adds=adds))
    return most_moved(table.dropna(subset="adds"), "adds")


def _paired(
    ours: str | Path, base: str | Path, kind: str
) -> tuple[list[Draws], dict[str, Estimate | None]]:
    """Draws of both, and their differences."""
    drawn = [of_run(folder, kind) for folder in (ours, base)]
    try:
        return drawn, paired(drawn[:1], drawn[1:])
    except UserError as error:
        raise UserError(f"{ours} and {base}: {error}") from error


def _same(ours: str | Path, base: str | Path, kind: str) -> list[matches.Matches]:
    """Matches of both; an error if they are of other images or objects."""
    _paired(ours, base, kind)
    return [matches.of_run(folder, kind) for folder in (ours, base)]


def _truth(folder: str | Path) -> dict:
    return annotations.read(read(folder).data["val"])


def most_moved(table: pd.DataFrame, by: str) -> pd.DataFrame:
    """The rows of a table by falling size of a column, of either sign."""
    return table.sort_values(by, key=np.abs, ascending=False, kind="stable", ignore_index=True)


def cost_table(ours: Record, base: Record) -> pd.DataFrame:
    """Costs of two runs: columns cost, base, ours, ratio; NaN where one is not known."""
    rows = []
    for name, (column, unit) in _COSTS.items():
        values = [getattr(run, column) for run in (base, ours)]
        before, after = (float("nan") if value is None else value / unit for value in values)
        rows.append(dict(cost=name, base=before, ours=after, ratio=after / (before or np.nan)))
    return pd.DataFrame(rows)


def changes(ours: Record, base: Record) -> list[str]:
    """What else differs: config keys, data, what it ran on and how; and which of them did not learn
    the cue; a line each."""
    marks = [
        f"{run.variant}, seed {run.seed}: {reach.MARK}"
        for run in (ours, base)
        if reach.marked(run.reach)
    ]
    foreign = [run.variant for run in (ours, base) if run.fingerprint == records.FOREIGN]
    if foreign:
        how = (f"{name} is a foreign result: how it was trained is not known" for name in foreign)
        return [*marks, *how]
    sides = [
        flat_config(run.config)
        | {"data": run.data["digest"]}
        | {key: getattr(run, key) for key in (*SAME, "git_commit")}
        for run in (ours, base)
    ]
    return marks + changed(*sides)


def show(ours: Path, base: Path, delta: float | None, top: int, console: Console) -> None:
    """Print all that two runs differ in.

    Args:
        top: how many categories and images of each kind.

    Raises:
        UserError: as of `ap_table`.
    """
    runs = [read(folder) for folder in (ours, base)]
    differences = ap_table(ours, base, delta)  # first: it refuses what is no pair
    for line in changes(*runs):
        console.print(line, highlight=False)
    print_table(with_interval(differences), "AP, 0 to 100", console)
    console.print(
        "The intervals are over images: they are about these two trained detectors. What another "
        "seed would change is not in them.",
        highlight=False,
    )
    for kind in kinds(ours, base) if top else ():
        moved = with_interval(categories(ours, base, kind).head(top))
        print_table(moved, f"{kind} AP of the categories that moved most", console)
        moved = images(ours, base, kind).head(top)
        title = f"{kind} AP: what the images that moved it most add to the difference"
        print_table(moved, title, console)
    print_table(cost_table(*runs), "costs", console)
