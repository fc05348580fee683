"""Results of any detector, in COCO's result format, as a row of a study's table."""

import dataclasses
import datetime
import math
import shutil
from pathlib import Path

from experiments import records
from experiments.data import annotations
from experiments.data.run_lengths import first_broken
from experiments.errors import UserError
from experiments.evaluation import reach
from experiments.evaluation.average_precision import coco_figures, lvis_figures
from experiments.evaluation.detections import read_results
from experiments.evaluation.matches import of_file
from experiments.records import FOREIGN, Record

_PREDICTIONS = "predictions.json"


def add(
    study: str | Path,
    predictions: str | Path,
    name: str,
    macs: float | None = None,
    params: float | None = None,
) -> Path:
    """Score a file of detections and put it into the study that was run in `study`.

    It is scored on what the study's first finished run was evaluated on, boxes and masks as far as
    its entries have them, and kept in the study's folder, with a copy of the predictions. The same
    name again takes its place.

    Args:
        macs, params: of the whole detector, if they are known.

    Returns:
        The folder of its record, which `analysis.compare` takes like that of a run.

    Raises:
        UserError: the name is that of a row, or cannot be a folder's or be printed, a cost is not
            above 0, no run of the study is finished, or the predictions are refused
            (`experiments.evaluation.matches.compute`).
    """
    study, predictions = Path(study), Path(predictions)
    manifest, runs = records.load_study(study)
    if name in [variant["name"] for variant in manifest["variants"]]:
        raise UserError(f"{study} has a row {name!r} of its own: choose another --name")
    if not name or name != Path(name).name or name.startswith("."):
        raise UserError(f"--name {name!r} cannot name a folder: choose another")
    if not name.isprintable():
        raise UserError(f"--name {name!r} cannot be printed: choose another")
    for option, value in (("--macs", macs), ("--params", params)):
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{option} {value} must be a finite number above 0")
    if runs.empty:
        raise UserError(
            f"no run of {study} is finished: what to score {predictions} on is not known"
        )
    data = runs.iloc[0]["data"]
    objects = annotations.read(data["val"]).get("annotations", ())
    _, kinds = read(predictions, any("segmentation" in o for o in objects))

    folder = study / FOREIGN / name
    scratch = folder.with_name(f".{name}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        shutil.copy(predictions, scratch / _PREDICTIONS)
        try:
            truth, rules = Path(data["val"]), data.get("kind", "coco")
            matches = {kind: of_file(truth, scratch / _PREDICTIONS, kind, rules) for kind in kinds}
        except UserError as error:
            message = str(error).replace(str(scratch / _PREDICTIONS), str(predictions))
            raise UserError(message) from error
        by_rules = lvis_figures if rules == "lvis" else coco_figures
        figures = {kind: by_rules(found) for kind, found in matches.items()}
        of_cue = reach.of_files(truth, scratch / _PREDICTIONS) if "box" in kinds else None
        record = _record(manifest, name, figures, data, macs, params)
        records.write(scratch, dataclasses.replace(record, reach=of_cue))
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def read(predictions: Path, has_masks: bool) -> tuple[list[dict], list[str]]:
    """What a file in COCO's result format holds, and of "box" and "mask" what its entries have.

    Args:
        has_masks: whether there are masks to compare its with.

    Raises:
        UserError: it is not of that format, holds nothing, or masks that are broken.
    """
    results = read_results(predictions)
    if not results:
        raise UserError(f"{predictions} holds no detection: nothing to compare")
    keys = {"box": "bbox", "mask": "segmentation"}
    # All entries must have what one has.
    kinds = [kind for kind, key in keys.items() if any(key in result for result in results)]
    if not kinds:
        raise UserError(f"{predictions} has neither bbox nor segmentation at any entry")
    wrong = first_broken([result.get("segmentation") for result in results])
    if wrong is not None:
        raise UserError(
            f"{predictions} has a mask at entry {wrong} whose run lengths are broken: they do not "
            "add up to its height times its width"
        )
    kinds = [kind for kind in kinds if kind == "box" or has_masks]
    if not kinds:
        raise UserError(f"{predictions} has masks only, and the annotations have none")
    return results, kinds


def _record(
    manifest: dict,
    name: str,
    figures: dict[str, dict],
    data: dict,
    macs: float | None,
    params: float | None,
) -> Record:
    known = dict(
        study=manifest["study"],
        variant=name,
        scale=manifest["scale"],
        size="",
        seed=0,
        fingerprint=FOREIGN,
        box=figures.get("box", {}),
        mask=figures.get("mask", {}),
        predictions=_PREDICTIONS,
        params=None if params is None else round(params),
        macs=None if macs is None else round(macs),
        finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        data={key: data.get(key) for key in ("kind", "val", "digest")},
        config={},
    )
    return Record(**dict.fromkeys(Record.__dataclass_fields__) | known)
