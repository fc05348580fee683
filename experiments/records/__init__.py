"""Records: what a finished run leaves behind, one JSON file each; and the manifest of a study."""

import contextlib
import json
import reprlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from ..errors import UserError
from ..json_files import write_json

VERSION = 1  # of both files; raise it when a field changes its meaning
RECORD, MANIFEST = "record.json", "study.json"
LAST_WEIGHTS = "model_final.pth"  # of a run, beside its record
RESULT = "result.json"  # of a checkpoint's evaluation outside of studies
METRICS = "metrics.json"  # of a run: a JSON line per log period
PRETRAINED = "pretrained"  # folder of pre-trainings, beside the studies of a scale
FOREIGN = "foreign"  # fingerprint of results that this suite did not make, and their folder
# Words that came later: a run of before, whose config has none, is one of these values.
SINCE = {"train.tuning": "full", "dataloader.train.views": 0}
# Keys of a config that do not change the result of a run, and so are no part of its identity.
NOT_IDENTITY = (
    "train.checkpoint_period",
    "train.checkpoint_minutes",
    "train.log_period",
    "train.may_skip",
    "train.parallel",
    "train.compile",
    "model.backbone.use_act_checkpoint",
    "dataloader.train.micro_batch_size",
    "dataloader.train.num_workers",
    "dataloader.test.num_workers",
    "dataloader.test.batch_size",
)
# COCO's twelve figures in pycocotools' order, here in 0..100.
COCO_FIGURES = (
    "AP",
    "AP50",
    "AP75",
    "APs",
    "APm",
    "APl",
    "AR1",
    "AR10",
    "AR100",
    "ARs",
    "ARm",
    "ARl",
)
# LVIS's: the last three are of rare, common and frequent categories.
LVIS_FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What every finished run leaves behind."""

    FILE = ""  # its name, beside the run's other files

    scale: str
    size: str
    seed: int
    fingerprint: str
    params: int | None  # of all that is trained
    encoder_params: int
    # Of training: of the run that trained, where several share one and differ at test time only.
    train_macs: int | None = None  # of one image's forward and backward pass; None: not counted
    train_seconds: float  # in the training loop, over all resumes
    images_per_second: float  # in training
    peak_memory_mib: float  # of one process, up to the end of training; memory_kind says of what
    memory_kind: str  # "process resident" (CPU) or "allocated on device" (CUDA)
    precision: str  # of training: "bfloat16 autocast", "float32", ...; each, where it changed
    device: str  # of training; each of them, where it went on on another
    threads: int  # of a process in training
    processes: int = 1  # of training: devices, or processes on a CPU
    skipped: int = 0  # steps left out, see train.may_skip
    # That trained, see `environment.processor`; several ", then "; empty: a GPU, or not noted.
    machine: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str]
    git_commit: str
    started: str  # ISO 8601, UTC
    finished: str
    data: dict[str, Any]  # images (of train and val), train, val (files, or folders), digest
    config: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Record(Trained):
    """One finished run; or a foreign result, whose unknown fields are None (`analysis.foreign`).

    `box` and `mask` map `COCO_FIGURES`, or `LVIS_FIGURES` if `data["kind"]` is "lvis", to 0..100,
    None where the set has no such object. `mask` is empty for a detector without masks.
    `predictions` is COCO's result format, beside the record: what resampling needs per image.
    """

    FILE = RECORD

    study: str
    variant: str
    box: dict[str, float | None]
    mask: dict[str, float | None]
    predictions: str  # file, relative to the record's folder
    macs: int | None  # of the whole detector, one image, see experiments.costs.detector_cost
    activations: int  # elements that convs, linear layers and attention put out, same image
    encoder_macs: int
    input_size: tuple[int, int]  # height, width in pixels of the image that macs are for
    evaluate_seconds: float  # detecting, over all resumes, and scoring; by the clock
    # By distance, objects annotated, found, and found with the right cue (evaluation/reach.py);
    # None: the data have no cue.
    reach: dict[str, list[int]] | None = None


@dataclass(frozen=True, kw_only=True)
class PretrainingRecord(Trained):
    """One finished pre-training."""

    FILE = "pretraining.json"

    recipe: str
    # Of the validation images, see `experiments.jobs.pretraining.validate`.
    figures: dict[str, float]


T = TypeVar("T", bound=Trained)
_AGAIN = "Move it away and run again"
_NUMBER = float | int | None
# What the analysis could not do with another type of.
_RECORD = dict(
    study=str, variant=str, scale=str, seed=int, predictions=str, box=dict, mask=dict, data=dict,
    config=dict, params=_NUMBER, macs=_NUMBER,
)  # fmt: skip
_MANIFEST = dict(
    study=str, question=str, scale=str, base=str, command=str, runs=list, variants=list
)  # fmt: skip
_RUN = dict(variant=str, seed=int, folder=str)
_VARIANT = dict(name=str, size=str, words=dict, published=dict)


def read_json(path: Path) -> dict:
    """A record or manifest.

    Raises:
        UserError: broken, or of another version.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}. {_AGAIN}") from error
    version = content.get("version") if isinstance(content, dict) else None
    if version != VERSION:
        raise UserError(
            f"{path} is of version {version}, this suite reads {VERSION}: "
            "use the suite that wrote it, or move it away and run again"
        )
    return content


def metrics(folder: Path) -> list[dict[str, Any]]:
    """What a run has logged, an entry per period, in the order of writing: what was repeated after
    an interruption comes again. Empty for one that was not trained."""
    path, entries = folder / METRICS, []
    for line in path.read_text().splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):  # what it was writing as it was interrupted
            entries.append(json.loads(line))
    return entries


def write(folder: Path, record: Trained) -> Path:
    """Write the record of the run in `folder`."""
    write_json(folder / record.FILE, {"version": VERSION, **asdict(record)})
    return folder / record.FILE


def read(path: Path, kind: type[T] = Record) -> T:
    """The record in a file; errors as of `read_json`."""
    content = read_json(path)
    del content["version"]
    what = f"{path} is no whole record"
    try:
        record = kind(**content)
    except TypeError as error:
        raise UserError(f"{what}: {error}. {_AGAIN}") from error
    if kind is not Record:
        return record
    _check(what, content, _RECORD)
    for kind in ("box", "mask"):
        _check(f"{what}: {kind}", content[kind], dict.fromkeys(content[kind], _NUMBER))
    if (reach := record.reach) is not None:
        distances = reach if isinstance(reach, dict) else ()
        _check(f"{what}: reach", reach, dict.fromkeys(distances, list))
    if "val" in record.data:
        _check(f"{what}: data", record.data, {"val": str})
    return record


def row(record: Record, path: Path) -> dict[str, Any]:
    """A record as one flat row: ap_box, ap50_box, ..., ap_mask, ..., macs, and its path.

    It has no column of figures that the record has not.
    """
    flat = asdict(record)
    for kind in ("box", "mask"):
        flat |= {f"{figure.lower()}_{kind}": value for figure, value in flat.pop(kind).items()}
    return {**flat, "path": str(path)}


def load(folder: str | Path) -> pd.DataFrame:
    """All records under a folder, one row each (see `row`); empty if there are none.

    Raises:
        UserError: a record is broken or of another version.
    """
    paths = sorted(Path(folder).rglob(RECORD))
    return pd.DataFrame([row(read(path), path) for path in paths])


def load_study(folder: str | Path) -> tuple[dict, pd.DataFrame]:
    """What was asked for in a study's folder, and the records that are there.

    Returns:
        The manifest (study, source, question, scale, size, base, variants, runs, command), and one
        row per finished run of it, in the study's order of rows.

    Raises:
        UserError: nothing was run there, or a file is broken or of another version.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise UserError(f"no study was run in {folder}: {MANIFEST} is missing. Run it first")
    manifest = read_json(folder / MANIFEST)
    _check_manifest(manifest, f"{folder / MANIFEST} is no whole manifest")
    rows = []
    for run in manifest["runs"]:
        path = folder / run["folder"] / RECORD
        if path.is_file():
            # A run may be shared with another study, under another name.
            rows.append({**row(read(path), path), "variant": run["variant"]})
    return manifest, pd.DataFrame(rows)


def _check(what: str, content: Any, types: dict[str, Any]) -> None:
    """That it is a dict with these keys, of these types."""
    if not isinstance(content, dict):
        raise UserError(f"{what} is {reprlib.repr(content)}. {_AGAIN}")
    for key, expected in types.items():
        if key not in content:
            raise UserError(f"{what}: it has no {key!r}. {_AGAIN}")
        if not isinstance(content[key], expected):
            raise UserError(f"{what}: {key} is {reprlib.repr(content[key])}. {_AGAIN}")


def _check_manifest(manifest: dict, what: str) -> None:
    _check(what, manifest, _MANIFEST)
    for key, types in (("runs", _RUN), ("variants", _VARIANT)):
        for i, entry in enumerate(manifest[key]):
            _check(f"{what}: entry {i} of {key}", entry, types)
    if manifest["base"] not in [variant["name"] for variant in manifest["variants"]]:
        raise UserError(f"{what}: its base {manifest['base']!r} is none of its variants. {_AGAIN}")


def load_foreign(folder: str | Path) -> pd.DataFrame:
    """The foreign results that were added to the study in `folder`, one row each."""
    return load(Path(folder) / FOREIGN)
