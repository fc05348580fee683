"""AP of each category: of files of detections, and of a study's rows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from experiments.data import annotations
from experiments.errors import UserError
from experiments.evaluation import average_precision, matches
from experiments.evaluation.matches import KINDS, Matches

from . import reach
from .bootstrap import resample
from .results import Results

SHOWN = 20  # categories in a table that is read; all are in categories.csv
_ACROSS = 5  # variants in a table that is read


def names(truth: dict) -> dict[int, str]:
    """Of an annotation file's content: name by id."""
    return {category["id"]: category["name"] for category in truth["categories"]}


def table(runs: Sequence[Matches], names: dict[int, str]) -> pd.DataFrame:
    """AP of each category of one run, or of two and their difference, 0..100.

    Returns:
        Columns category, objects, AP, AP50, AP75; or category, objects, base (the second), ours,
        difference. Then low and high: the 95 % interval of AP or of the difference, over images, of
        each on its own: the widest of many look larger than they are. Categories of which there are
        no objects are left out.
    """
    weights = resample(len(runs[0].images))
    found = [average_precision.of_categories(run) for run in runs]
    drawn = [average_precision.of_categories(run, weights)[:, :, 0] for run in runs]
    objects = runs[0].objects[:, :, 0].sum(0)
    columns = dict(category=[names[number] for number in runs[0].categories], objects=objects)
    value, moves = found[0][:, 0], drawn[0]
    if len(runs) == 1:
        columns |= dict(zip(("AP", "AP50", "AP75"), found[0].T[:3], strict=True))
    else:
        columns |= dict(base=found[1][:, 0], ours=value)
        value, moves = value - found[1][:, 0], moves - drawn[1]
        columns["difference"] = value
    # A resample may lack a category.
    half = stats.norm.ppf(0.975) * np.ma.masked_invalid(moves).std(axis=1, ddof=1).filled(np.nan)
    columns |= dict(low=value - half, high=value + half)
    return pd.DataFrame(columns)[objects > 0].reset_index(drop=True)


def of_study(found: Results) -> pd.DataFrame:
    """A row per kind, variant and category of which there are objects: kind, category, objects,
    variant, ap (mean over the seeds that count, 0..100), seeds.

    Runs whose predictions or ground truth are not there have none.
    """
    runs, parts = found.records, []
    known: dict[str, dict[int, str]] = {}
    for _, run in (runs if runs.empty else runs[~reach.not_learned(runs)]).iterrows():
        for kind in KINDS:
            if pd.isna(run.get(f"ap_{kind}")):
                continue
            truth = run["data"]["val"]
            try:
                matched = matches.of_run(Path(run["path"]).parent, kind)
                if truth not in known:
                    known[truth] = names(annotations.read(truth))
            except UserError:
                continue  # said of the intervals, which need the same
            columns = dict(
                kind=kind,
                category=[known[truth][number] for number in matched.categories],
                objects=matched.objects[:, :, 0].sum(0),
                variant=run["variant"],
                ap=average_precision.of_categories(matched)[:, 0],
            )
            parts.append(pd.DataFrame(columns).assign(place=range(len(matched.categories))))
    if not parts:
        return pd.DataFrame(columns=["kind", "category", "objects", "variant", "ap", "seeds"])
    every = pd.concat(parts)
    keys = ["kind", "place", "category", "objects", "variant"]
    mean = every[every["objects"] > 0].groupby(keys, sort=False)["ap"].agg(["mean", "size"])
    mean = mean.rename(columns={"mean": "ap", "size": "seeds"}).reset_index()
    return mean.drop(columns="place")


def texts(found: Results) -> list[tuple[str, pd.DataFrame]]:
    """`of_study` as tables of text cells with their titles, of boxes and of masks: a row per
    category, a column per variant, `_ACROSS` in a table; of more than `SHOWN` categories those in
    which the rows differ most."""
    every, shown = of_study(found), []
    for kind in KINDS:
        mine = every[every["kind"] == kind]
        if mine.empty:
            continue
        order = list(dict.fromkeys(mine["variant"]))
        cells = mine.pivot_table("ap", ["category", "objects"], "variant", sort=False)[order]
        if len(cells) > SHOWN:
            ranges = cells.max(axis=1) - cells.min(axis=1)
            cells = cells.loc[ranges.sort_values(ascending=False, kind="stable").index[:SHOWN]]
        text = cells.map(lambda ap: "" if pd.isna(ap) else f"{ap:.1f}")
        for first in range(0, len(order), _ACROSS):
            some = text[order[first : first + _ACROSS]]
            shown.append((f"{kind.capitalize()} AP by category", some.reset_index().astype(str)))
    return shown
