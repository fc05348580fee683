"""Reach of a study's runs (`experiments.evaluation.reach`): counts, shares, and which of them did
not learn the cue, so that neither their reach nor their AP says anything about propagation."""

from pathlib import Path

import pandas as pd
from rich.console import Console

from experiments import records
from experiments.errors import UserError
from experiments.evaluation import reach
from experiments.evaluation.reach import SHOWN, Reach

from .text import print_table

MARK = "cue not learned: says nothing about propagation"
CHANCE = 0.5  # of two colours


def distances(runs: pd.DataFrame) -> list[str]:
    """Those of the data, nearest first; none if no run has a reach."""
    return list(max(filter(_known, runs.get("reach", ())), key=len, default=()))


def words(distance: str) -> str:
    """How a table's header calls it."""
    return {"0": "same"}.get(distance, distance)


def not_learned(runs: pd.DataFrame) -> pd.Series:
    """Whether each run has a reach and did not learn the cue, bool."""
    of_runs = runs.get("reach", [None] * len(runs))
    return pd.Series([marked(of_run) for of_run in of_runs], runs.index, dtype=bool)


def marked(of_run: Reach | None) -> bool:
    """Whether a run has a reach and did not learn the cue."""
    return _known(of_run) and not reach.learned(of_run)


def finished(table: pd.DataFrame) -> pd.Series:
    """How many runs of each row of a study's table are finished, those that did not learn the cue
    among them."""
    return table["seeds"] + table.get("cue_not_learned", 0)


def shares(runs: pd.DataFrame) -> pd.DataFrame:
    """Share of the right cue of each run, a column per distance; NaN where nothing is found."""
    names = distances(runs)
    known = [r if _known(r) else {} for r in runs["reach"]] if names else []
    rows = [[reach.share(r, name) for name in names] for r in known]
    return pd.DataFrame(rows, runs.index, names, dtype=float)


def counts(runs: pd.DataFrame) -> pd.DataFrame:
    """A row per run and distance: variant, seed, distance, annotated, objects (of these, those that
    were found) and right (of the found, those of the right cue); empty if no run has a reach."""
    lines = [
        (run["variant"], run["seed"], distance, *run["reach"][distance])
        for _, run in runs.iterrows()
        if _known(run.get("reach"))
        for distance in run["reach"]
    ]
    columns = ["variant", "seed", "distance", "annotated", "objects", "right"]
    return pd.DataFrame(lines, columns=columns)


def curves(runs: pd.DataFrame) -> pd.DataFrame:
    """A row per variant and distance, of its runs that learned the cue and of those that did not:
    variant, cue_learned, distance, seeds, right (mean share over seeds), low and high (lowest and
    highest seed), std (over seeds); empty if no run has a reach."""
    if not (names := distances(runs)):
        return pd.DataFrame()
    runs = runs[["variant"]].join(shares(runs)).assign(cue_learned=~not_learned(runs))
    long = runs.melt(["variant", "cue_learned"], names, "distance", "share").dropna(subset="share")
    groups = long.groupby(["variant", "cue_learned", "distance"], sort=False)["share"]
    return groups.agg(seeds="size", right="mean", low="min", high="max", std="std").reset_index()


def notes(runs: pd.DataFrame) -> list[str]:
    """Of each variant with runs that did not learn the cue, which they are."""
    lines = []
    left_out = runs[not_learned(runs)]
    for variant, mine in left_out.groupby("variant", sort=False) if len(left_out) else ():
        shown = (
            f"seed {seed} ({reach.share(of_run, SHOWN):.3f} right where it is shown)"
            for seed, of_run in zip(mine["seed"], mine["reach"], strict=True)
        )
        lines.append(
            f"{variant}: {MARK}: {', '.join(shown)}; left out of mean, interval and verdict"
        )
    return lines


def of(source: Path, predictions: Path | None) -> Reach:
    """Reach counted anew.

    Args:
        source: folder of a finished run; or, with predictions in COCO's result format, the
            annotation file of the images that they are of.

    Raises:
        UserError: a file cannot be read, or the annotations have no cue.
    """
    truth = source
    if predictions is None:
        record = records.read(source / records.RECORD)
        truth, predictions = Path(record.data["val"]), source / record.predictions
    found = reach.of_files(truth, predictions)
    if found is None:
        raise UserError(
            f"{truth} does not say which objects show a cue, so there is no reach: docs/analysis.md"
        )
    return found


def show(source: Path, predictions: Path | None, console: Console) -> None:
    """Print a reach counted anew, as of `of`."""
    found = of(source, predictions)
    rows = [(name, *counts, reach.share(found, name)) for name, counts in found.items()]
    columns = ["distance", "annotated", "found", "right", "share right"]
    table = pd.DataFrame(rows, columns=columns)
    print_table(table, f"reach of {predictions or source}", console)
    if not reach.learned(found):
        console.print(MARK, highlight=False)


def _known(of_run: object) -> bool:
    return isinstance(of_run, dict)
