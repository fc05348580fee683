"""An evaluated checkpoint: its figures beside the AP that is published for it."""

import json
from dataclasses import dataclass
from math import isnan
from pathlib import Path, PurePosixPath

import pandas as pd

from experiments import records
from experiments.errors import UserError
from experiments.evaluation.matches import KINDS
from experiments.records import MANIFEST, RECORD, RESULT

from . import paper
from .bootstrap import bootstrap, of_run
from .results import PAPERS_DATA
from .text import number


@dataclass(frozen=True)
class Published:
    """AP (0..100) of "box" and "mask" as far as they are published, and what they are of."""

    ap: dict[str, float]
    of: str
    dataset: str  # "coco" (val2017) or "lvis" (v1 val)


def read(folder: str | Path) -> dict:
    """What `experiments.jobs.evaluate_checkpoint` left in a folder.

    Raises:
        UserError: no evaluation was finished there, or its result is broken.
    """
    path = Path(folder) / RESULT
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(
            f"no finished evaluation in {folder}: make one with make eval-coco CONFIG= WEIGHTS="
        ) from error
    except ValueError as error:
        raise UserError(f"cannot read {path}: {error}. Move it away and evaluate again") from error


def published(weights: Path) -> Published | None:
    """What is published for a checkpoint: that of a released model, known by its file name, or the
    paper's of the row and size that a run of this suite trained."""
    models = pd.concat([paper.load("released_models"), paper.load("todays_models")])
    models = models.dropna(subset="checkpoint")
    names = models["checkpoint"].map(lambda name: PurePosixPath(name).name)
    if len(found := models[names == weights.name]):
        row = found.iloc[0]
        model = row["name"] if pd.isna(row["model"]) else row["model"]
        of = f"released model {weights.name} ({row['detector']}, {model}): {row['source']}"
        return Published(_known(row), of, row["dataset"].lower())
    if not (weights.parent / RECORD).is_file():
        return None
    run = records.read(weights.parent / RECORD)
    path = weights.parent.parent / MANIFEST
    rows = records.read_json(path)["variants"] if path.is_file() else []
    where = next((row["published"].get(run.size) for row in rows if row["name"] == run.variant), "")
    if not where:
        return None
    where = where.split()[0]
    row = paper.known().loc[where]
    of = f"the paper's Table {where[1:].replace(':', ', row ')}"
    if row["table"] == "today":
        of = f"{row['name']} ({row['detector']}, {row['model']}), {row['source']}"
    of, known = f"{of}: {run.variant}, {run.size}", _known(row)
    return Published(known, f"{of}; trained by its authors", run.data.get("kind", "coco"))


def _known(row: pd.Series) -> dict[str, float]:
    aps = {kind: float(row[f"ap_{kind}"]) for kind in KINDS}
    return {kind: ap for kind, ap in aps.items() if not isnan(ap)}


def table(folder: str | Path) -> pd.DataFrame:
    """All figures of an evaluation, 0..100, as printed: rows of the figures, of half their 95 %
    intervals over images, and of what is published and the difference to it, for boxes and masks.

    Raises:
        UserError: as of `read`.
    """
    folder, result = Path(folder), read(folder)
    known = published(Path(result["weights"]))
    rows = []
    for kind in KINDS:
        figures = result[kind]
        if not figures:
            continue
        rows.append(_row(kind, {name: number(value) for name, value in figures.items()}))
        estimates = bootstrap([of_run(folder, kind)])
        halves = {name: e.interval()[1] - e.value for name, e in estimates.items() if e}
        rows.append(_row("± 95 %", {name: number(half) for name, half in halves.items()}))
        if known and kind in known.ap:
            rows.append(_row("published", {"AP": number(known.ap[kind])}))
            if _comparable(result, known):
                rows.append(
                    _row("difference", {"AP": number(figures["AP"] - known.ap[kind], "+.1f")})
                )
    return pd.DataFrame(rows).fillna("")


def _row(name: str, cells: dict[str, str]) -> dict[str, str]:
    return {"": name, **cells}


def _comparable(result: dict, known: Published) -> bool:
    """Whether it was evaluated on what the published AP are of."""
    _, file, images = PAPERS_DATA[known.dataset]
    return (Path(result["data"]["val"]).name, result["images"]) == (file, images)


def notes(folder: str | Path) -> list[str]:
    """What to say of an evaluation beside its table, a line each; errors as of `read`."""
    kept, result = Path(folder).resolve(), read(folder)
    seconds, images = result["seconds"], result["images"]
    lines = [
        f"{result['weights']} on {images} images of {result['data']['val']}; {seconds:.0f} s, "
        f"{images / seconds:.2f} images/s on {result['processes']} x {result['device']}"
    ]
    if result["overrides"]:
        lines.append(f"with overrides: {result['overrides']}")
    known = published(Path(result["weights"]))
    if not result["box"]:
        lines.append(f"no ground truth, no figures: files for the evaluation server in {kept}")
    elif known is None:
        lines.append(
            "nothing is published for these weights: they have no file name of a released model, "
            "and are of no run whose row and size the paper has"
        )
    else:
        lines.append(f"published: {known.of}")
        if not _comparable(result, known):
            name, _, count = PAPERS_DATA[known.dataset]
            lines.append(
                f"not comparable: published AP is on the {count} images of {name}, "
                f"this on {images} of {Path(result['data']['val']).name}"
            )
    lines.append(f"predictions, figures and record, for python -m analysis compare: {kept}")
    return lines
