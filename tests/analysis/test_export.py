"""Finished runs at a tracker: what each one's own local files hold afterwards."""

import json
import os
import shutil
import struct
from collections.abc import Iterator

import pandas as pd
import pytest

from analysis import export, results
from experiments import records

LOG = [
    dict(iteration=19, total_loss=2.5, lr=1e-3, note="no number"),
    dict(iteration=39, total_loss=2.0, lr=1e-3),
    dict(iteration=39, total_loss=1.5),  # repeated after an interruption
]


@pytest.fixture
def logged(study):
    lines = [json.dumps(entry) for entry in LOG]
    (study / "none-0" / records.METRICS).write_text("\n".join([*lines, '{"iteration": 59, "tot']))
    return study


def numbers(study) -> pd.Series:
    return results.load(study).records.iloc[0]


def test_csv_has_config_figures_curves_and_pictures(logged, tmp_path, analysis):
    out = tmp_path / "out"
    code, said = analysis("export", logged, "--to", "csv", "--out", out)
    assert (code, said) == (0, f"6 runs to csv; files, if any, in {out}\n")
    runs, row = pd.read_csv(out / "runs.csv"), numbers(logged)
    assert runs["run"].tolist()[:2] == [f"{row['variant']} seed {row['seed']}", "none seed 1"]
    first = runs.iloc[0]
    assert first["ap_box"] == pytest.approx(row["ap_box"])
    assert (first["macs"], first["model.word"], first["train.max_iter"]) == (10**9, "none", 9)
    curves = pd.read_csv(out / "curves.csv").query("id == @first.id")
    values = {(i, name): value for i, name, value in curves[["iteration", "name", "value"]].values}
    assert values == {
        (19, "total_loss"): 2.5, (19, "lr"): 1e-3, (39, "total_loss"): 1.5, (39, "lr"): 1e-3
    }  # fmt: skip
    study = out / first["group"]
    assert {"forest.png", "table.md", "table.csv"} <= {path.name for path in study.iterdir()}


def mlflow_holds(out):
    import mlflow

    client = mlflow.MlflowClient(f"file://{out}/mlruns")
    project = client.get_experiment_by_name(export.PROJECT)
    for run in client.search_runs([project.experiment_id]):
        curve = client.get_metric_history(run.info.run_id, "total_loss")
        files = {file.path for file in client.list_artifacts(run.info.run_id)}
        losses = {point.step: point.value for point in curve}
        name = run.data.tags["mlflow.runName"]
        yield name, run.data.params, run.data.metrics.get("ap_box"), losses, files


def records_of(path) -> Iterator[bytes]:
    """Of a file in wandb's format: LevelDB's log of blocks of 32 KiB, behind seven bytes."""
    data, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := 2**15 - place % 2**15) < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last piece
            yield record
            record = b""


def wandb_holds(out):
    from wandb.proto.wandb_internal_pb2 import Record

    def values(items):
        return {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}

    for folder in (out / "wandb").glob("offline-run-*"):
        name, config, summary, losses = "", {}, {}, {}
        for data in records_of(next(folder.glob("*.wandb"))):
            record = Record.FromString(data)
            name = record.run.display_name or name
            config |= values(record.run.config.update)
            summary |= values(record.summary.update)
            step = values(record.history.item)
            if "total_loss" in step:
                losses[step.get("_step", record.history.step.num)] = step["total_loss"]
        pictures = {path.name.rsplit("_", 2)[0] for path in folder.rglob("*.png")}  # step, digest
        yield name, config, summary.get("ap_box"), losses, {f"{name}.png" for name in pictures}


def trackio_holds(out):
    from trackio.sqlite_storage import SQLiteStorage

    for run in SQLiteStorage.get_runs(export.PROJECT):
        logs = SQLiteStorage.get_logs(export.PROJECT, run)
        losses = {log["step"]: log["total_loss"] for log in logs if "total_loss" in log}
        (ap,) = [log["ap_box"] for log in logs if "ap_box" in log] or [None]
        files = {f"{key}.png" for log in logs for key, v in log.items() if isinstance(v, dict)}
        yield run, SQLiteStorage.get_run_config(export.PROJECT, run), ap, losses, files


@pytest.mark.parametrize("to", ["mlflow", "trackio", "wandb"])
def test_a_trackers_own_files_hold_every_finished_run(to, logged, tmp_path, analysis):
    pytest.importorskip(to, reason=f"no {to} here: make test-trackers")
    out = tmp_path / "out"
    words = ["export", logged, "--to", to, "--out", out, "--offline"]
    assert analysis(*words) == (0, f"6 runs to {to}; files, if any, in {out}\n")
    found = {name: rest for name, *rest in globals()[f"{to}_holds"](out)}
    assert len(found) == 6
    row = numbers(logged)
    (name,) = [name for name in found if "none" in name and "0" in name.split("seed")[-1][:3]]
    config, ap, losses, _ = found[name]
    assert str(config["train.max_iter"]) == "9"
    assert ap == pytest.approx(row["ap_box"])
    assert losses == {19: 2.5, 39: 1.5}
    pictures = set().union(*(files for *_, files in found.values()))
    assert {"forest.png", "ap_vs_macs.png"} <= pictures
    said = f"0 runs to {to}, 6 were sent before ({out} says which); files, if any, in {out}\n"
    assert analysis(*words) == (0, said)


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("tensorbored", "unknown tracker 'tensorbored'"),
        ("wandb", "wandb is not installed: pip install wandb, or TO=csv, which needs nothing"),
    ],
)
def test_what_cannot_be_sent_to_is_one_line(to, message, study, tmp_path, analysis, monkeypatch):
    (tmp_path / "wandb").mkdir()  # as it leaves behind where it runs
    hidden = [path for path in os.sys.path if not os.path.isdir(os.path.join(path, "wandb"))]
    monkeypatch.setattr("sys.path", [str(tmp_path), *hidden])
    monkeypatch.delitem(os.sys.modules, "wandb", raising=False)
    code, said = analysis("export", study, "--to", to, "--out", tmp_path / "out")
    assert code == 2
    assert said.startswith(f"error: {message}")
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_run_that_a_tracker_refuses_is_named_and_sent_again(logged, tmp_path, monkeypatch):
    refusing = iter([None, OSError("no route\nto host"), None])

    def tracker(run, *_):
        if error := next(refusing):
            raise error

    monkeypatch.setitem(export.TRACKERS, "json", tracker)  # a module that is there
    runs = export.of_study(results.load(logged), tmp_path)[:2]
    with pytest.raises(export.UserError, match=f"json refuses {runs[1].id}: no route to host"):
        export.send(runs, "json", tmp_path)
    assert export.send(runs, "json", tmp_path) == 1


def test_a_study_without_runs_sends_its_question(study, tmp_path):
    for folder in study.glob("*-?"):
        shutil.rmtree(folder)
    (of_study,) = export.of_study(results.load(study), tmp_path)
    assert of_study.config["question"] == "What?"
