"""Files of detections scored against an annotation file: no run, no images, no config."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console

from experiments.data import annotations
from experiments.data.annotations import Split
from experiments.data.defects import AnnotationFile
from experiments.errors import UserError
from experiments.evaluation import matches
from experiments.evaluation.average_precision import coco_figures, lvis_figures

from . import bootstrap, categories, foreign
from .bootstrap import DELTA
from .compare import most_moved
from .text import print_table, with_interval


class Scored:
    """One or two files of detections, matched to the objects of an annotation file.

    Args:
        truth: in COCO's format, or in LVIS's, and so scored by its rules, if its images say which
            categories were looked for in them.
        results: in COCO's result format.

    Attributes:
        rules: "coco" or "lvis".
        notes: what is odd in the annotation file, one line; "" if nothing is.
        runs: by kind, the matches of each file; the kinds are those that all files have, masks
            only if the annotations have some.

    Raises:
        UserError: a file cannot be read or used; the files share no kind.
    """

    def __init__(self, truth: Path, results: Sequence[Path]):
        self.rules = _rules(truth)
        file = AnnotationFile("val", Split(str(truth), "", self.rules))
        file.refuse_errors()
        self.notes, self._names = file.notes(), categories.names(file.content)
        read = [foreign.read(path, file.has_masks) for path in results]
        kinds = [kind for kind in matches.KINDS if all(kind in of for _, of in read)]
        if not kinds:
            raise UserError(
                f"{' and '.join(map(str, results))} share no kind: one has boxes only, the other "
                "masks only"
            )
        self.runs = {
            kind: [
                matches.compute(file.content, found, kind, str(path), self.rules)
                for path, (found, _) in zip(results, read, strict=True)
            ]
            for kind in kinds
        }

    def figures(self, kind: str, delta: float = DELTA) -> pd.DataFrame:
        """Every figure of the rules, 0..100, a row each.

        Returns:
            Of one file, columns figure, value, low and high: the 95 % interval over images, NaN
            where there is none. Of two: figure, base (the second), ours, difference, low and high
            of it, over the same resampled images, and verdict (`bootstrap.Estimate`).
        """
        runs = self.runs[kind]
        of = lvis_figures if self.rules == "lvis" else coco_figures
        values = [of(run) for run in runs]
        draws = [bootstrap.draw(run) for run in runs]
        pair = len(runs) == 2
        found = bootstrap.paired(draws[:1], draws[1:]) if pair else bootstrap.bootstrap(draws)
        rows = []
        for figure, value in values[0].items():
            row, estimate = dict(figure=figure), found.get(figure)
            low, high = estimate.interval() if estimate else (None, None)
            if pair:
                known = None not in (value, values[1][figure])
                row |= dict(base=values[1][figure], ours=value)
                row["difference"] = value - values[1][figure] if known else None
            else:
                row["value"] = value
            row |= dict(low=low, high=high)
            if pair:
                row["verdict"] = estimate.verdict(delta) if estimate else ""
            rows.append(row)
        return pd.DataFrame(rows)

    def categories(self, kind: str) -> pd.DataFrame:
        """AP of each category, or its difference, as of `categories.table`."""
        return categories.table(self.runs[kind], self._names)


def _rules(truth: Path) -> str:
    content, _ = annotations.parse(truth)
    images = content.get("images") if isinstance(content, dict) else None
    first = images[0] if isinstance(images, list) and images else None
    return "lvis" if isinstance(first, dict) and "neg_category_ids" in first else "coco"


def show(
    truth: Path, results: Path, base: Path | None, delta: float, top: int, console: Console
) -> None:
    """Print the figures and categories of a file of detections, or of two their differences.

    Args:
        base: the second file; None: there is none.
        top: how many categories of each kind; 0: all.

    Raises:
        UserError: as of `Scored`.
    """
    scored = Scored(truth, [results, *([base] if base else [])])
    counted = next(iter(scored.runs.values()))[0]
    console.print(
        f"{scored.rules.upper()}'s rules, {len(counted.images)} images, "
        f"{counted.objects[:, :, 0].sum()} objects",
        highlight=False,
    )
    if scored.notes:
        console.print(f"note: {scored.notes}", highlight=False)
    if base:
        console.print(f"ours: {results}\nbase: {base}", highlight=False)
    sign = "+" * bool(base)
    for kind in scored.runs:
        figures = with_interval(scored.figures(kind, delta), sign)
        print_table(figures, f"{kind} AP and AR, 0 to 100", console)
        table = scored.categories(kind)
        table = most_moved(table, "difference") if base else table
        shown = table.head(top) if top else table
        title = f"{kind} AP by category" + ", those that moved most first" * bool(base)
        print_table(with_interval(shown, sign), title, console)
        if len(shown) < len(table):
            console.print(
                f"and {len(table) - len(shown)} more categories: --top 0", highlight=False
            )
