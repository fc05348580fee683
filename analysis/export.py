"""Finished runs sent to an experiment tracker, from their records: config, figures, curves, and, in
a run of their own, a study's tables and pictures. `TRACKERS` are the ones there are; none is needed
by anything else."""

import contextlib
import csv
import importlib.util
import io
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from experiments import records
from experiments.errors import UserError, unknown
from experiments.json_files import write_json

from . import plots, reach, results, tables
from .comparable import flat_config
from .results import Results

PROJECT = "backbone-ablations"
_ABOUT = ("study", "variant", "scale", "size", "seed", "fingerprint", "precision", "device")
_NO_FIGURE = ("seed", "threads", "processes")


@dataclass(frozen=True)
class Run:
    """What a tracker gets of a run, or of a study: its tables and pictures."""

    group: str  # scale and study
    name: str
    id: str
    config: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    curves: dict[int, dict[str, float]] = field(default_factory=dict)  # by iteration
    pictures: list[Path] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


def of_study(found: Results, folder: Path) -> list[Run]:
    """The study's finished runs and foreign results, then its tables and pictures.

    Args:
        folder: that these are written to.
    """
    manifest = found.manifest
    group = f"{manifest['scale']}-{found.folder.name}"
    folder = folder / group
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    shares = reach.shares(found.records) if len(found.records) else pd.DataFrame()
    for i, record in found.records.iterrows():
        name = f"{record['variant']} seed {record['seed']:g}"
        own = Path(record["path"]).parent
        figures = {key: value for key, value in record.items() if _is_number(key, value)}
        if i in shares.index:
            figures |= shares.loc[i].dropna().add_prefix("reach_").to_dict()
        config = {key: record[key] for key in _ABOUT} | flat_config(record["config"] or {})
        versions = record["versions"] if isinstance(record["versions"], dict) else {}
        config |= {f"version.{key}": value for key, value in versions.items()}
        curves: dict[int, dict[str, float]] = {}
        for entry in records.metrics(own):
            values = {k: v for k, v in entry.items() if k != "iteration" and _is_number(k, v)}
            curves.setdefault(entry["iteration"], {}).update(values)
        mark = _id(f"{group} {name} {record['fingerprint'][:8]}")
        made.append(Run(group, name, mark, config, figures, dict(sorted(curves.items()))))
    pictures = [draw(found, folder / name) for name, draw in plots.ALL.items()]
    pictures = [path for files in pictures for path in files if path.suffix == ".png"]
    (folder / "table.md").write_text(tables.markdown(found, wide=True))
    found.table.to_csv(folder / "table.csv", index=False)
    about = {key: manifest[key] for key in ("study", "question", "scale", "base", "command")}
    files = [folder / "table.md", folder / "table.csv"]
    # Another one when more runs are finished.
    mark = _id(f"{group} {len(made)} runs")
    made.append(Run(group, "tables and plots", mark, about, pictures=pictures, files=files))
    return made


def _is_number(key: str, value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and key not in _NO_FIGURE and not pd.isna(value)


def _id(words: str) -> str:
    return re.sub(r"[^\w.-]+", "-", words)


def send(runs: list[Run], to: str, out: Path, project: str = PROJECT, offline: bool = False) -> int:
    """Send runs to a tracker; those that were sent to it before are left out.

    Args:
        to: of `TRACKERS`.
        out: folder for what a tracker writes, and for the list of what was sent.
        offline: nothing leaves this machine: the tracker's own local files, in `out`. Else as the
            tracker's own settings say.

    Returns:
        How many were sent.

    Raises:
        UserError: no such tracker, it is not installed, or it refuses.
    """
    check(to)
    out.mkdir(parents=True, exist_ok=True)
    if to == "csv":
        _csv(runs, out)
        return len(runs)
    listed = out / ("sent-offline.json" if offline else "sent.json")
    sent = json.loads(listed.read_text()) if listed.is_file() else {}
    todo = [run for run in runs if run.id not in sent.get(project, [])]
    for run in todo:
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # greetings
                TRACKERS[to](run, project, out.absolute(), offline)
        except Exception as error:
            message = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{to} refuses {run.id}: {message}") from error
        sent.setdefault(project, []).append(run.id)
        write_json(listed, sent)
    return len(todo)


def check(to: str) -> None:
    """Raises UserError for a tracker that is not known, or not installed."""
    if to not in TRACKERS:
        raise unknown("tracker", to, TRACKERS)
    found = importlib.util.find_spec(to)
    if found is None or found.origin is None:  # a folder of that name, as trackers make, is none
        raise UserError(f"{to} is not installed: pip install {to}, or TO=csv, which needs nothing")


def _csv(runs: list[Run], out: Path) -> None:
    """runs.csv, a row each, and curves.csv, a row per run, iteration and name."""
    rows = [
        dict(group=run.group, run=run.name, id=run.id, **run.figures, **run.config)
        for run in runs
        if not run.files
    ]
    pd.DataFrame(rows).to_csv(out / "runs.csv", index=False)
    with open(out / "curves.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "iteration", "name", "value"])
        for run in runs:
            for iteration, values in run.curves.items():
                writer.writerows([run.id, iteration, *pair] for pair in values.items())


def _wandb(run: Run, project: str, out: Path, offline: bool) -> None:
    import wandb

    with wandb.init(
        project=project, id=run.id, name=run.name, group=run.group, config=run.config, dir=out,
        mode="offline" if offline else None, resume=None if offline else "allow",
        settings=wandb.Settings(silent=True, console="off"),
    ) as sent:  # fmt: skip
        for iteration, values in run.curves.items():
            sent.log(values, step=iteration)
        if run.pictures:
            sent.log({path.stem: wandb.Image(str(path)) for path in run.pictures})
        for path in run.files:
            sent.save(path, base_path=path.parent, policy="now")
        sent.summary.update(run.figures)


def _mlflow(run: Run, project: str, out: Path, offline: bool) -> None:
    if offline:  # its own default wants a data base
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    import mlflow
    from mlflow.entities import Metric, Param, RunTag

    client = mlflow.MlflowClient(f"file://{out}/mlruns" if offline else None)
    known = client.get_experiment_by_name(project)
    experiment = known.experiment_id if known else client.create_experiment(project)
    tags = {"mlflow.runName": run.name, "group": run.group, "id": run.id}
    sent = client.create_run(experiment, tags=tags).info
    now = sent.start_time
    values = [(0, run.figures), *run.curves.items()]
    metrics = [
        Metric(re.sub(r"[^\w ./:-]", "_", key), float(value), now, step)
        for step, of_step in values
        for key, value in of_step.items()
    ]
    params = [Param(key, str(value)[:6000]) for key, value in run.config.items()]
    for some in _batches(metrics, 1000):
        client.log_batch(sent.run_id, metrics=some)
    for some in _batches(params, 100):
        client.log_batch(sent.run_id, params=some)
    client.log_batch(sent.run_id, tags=[RunTag("study", run.group)])
    for path in (*run.pictures, *run.files):
        client.log_artifact(sent.run_id, str(path))
    client.set_terminated(sent.run_id)


def _batches(values: list, most: int) -> list[list]:
    return [values[i : i + most] for i in range(0, len(values), most)]


def _trackio(run: Run, project: str, out: Path, offline: bool) -> None:
    if offline:
        os.environ["TRACKIO_DIR"] = str(out)
        os.environ.pop("TRACKIO_SPACE_ID", None)
    import trackio

    quiet = dict(auto_log_gpu=False, auto_log_cpu=False)  # it measures this machine, now
    trackio.init(project, name=run.id, group=run.group, config=run.config, embed=False, **quiet)
    for iteration, values in run.curves.items():
        trackio.log(values, step=iteration)
    last = max(run.curves, default=-1) + 1
    pictures = {path.stem: trackio.Image(str(path)) for path in run.pictures}
    if run.figures or pictures:
        trackio.log({**run.figures, **pictures}, step=last)
    trackio.finish()


TRACKERS: dict[str, Callable[[Run, str, Path, bool], None] | None] = {
    "csv": None,
    "mlflow": _mlflow,
    "trackio": _trackio,
    "wandb": _wandb,
}


def export(folders: list[Path], to: str, out: Path, **words: Any) -> str:
    """Send all finished runs of studies, see `send`; returns what to say."""
    check(to)
    runs = [run for folder in folders for run in of_study(results.load(folder), out)]
    count = send(runs, to, out, **words)
    before = len(runs) - count
    again = f", {before} were sent before ({out} says which)" * bool(before)
    return f"{count} runs to {to}{again}; files, if any, in {out}"
