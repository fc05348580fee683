"""Records and manifests: written whole, read back, refused when broken or old."""

import dataclasses
import errno
import json
import os

import pytest

from experiments import records
from experiments.errors import UserError
from experiments.json_files import write_json


def make(**changes) -> records.Record:
    figures = {f: 10.0 + i for i, f in enumerate(records.COCO_FIGURES)}
    record = records.Record(
        study="global-vs-conv",
        variant="none",
        scale="mini",
        size="vit-mini",
        seed=0,
        fingerprint="0123456789abcdef",
        box=figures,
        mask={**figures, "APl": None},
        predictions="coco_instances_results.json",
        params=1_000_000,
        macs=2_000_000_000,
        activations=3_000_000,
        encoder_params=300_000,
        encoder_macs=100_000_000,
        input_size=(128, 128),
        train_seconds=60.0,
        images_per_second=30.0,
        evaluate_seconds=5.0,
        peak_memory_mib=700.0,
        memory_kind="process resident",
        precision="float32",
        device="a CPU",
        threads=1,
        versions={"torch": "2.15.0"},
        git_commit="abc",
        started="2026-01-01T00:00:00+00:00",
        finished="2026-01-01T00:01:00+00:00",
        data={"digest": "d"},
        config={"train": {"seed": 0}},
    )
    return dataclasses.replace(record, **changes)


def test_what_is_written_is_read(tmp_path):
    record = make()
    path = records.write(tmp_path, record)
    read = records.read(path)
    assert dataclasses.replace(read, input_size=tuple(read.input_size)) == record
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


def test_load_is_one_flat_row_per_record(tmp_path):
    for seed in (0, 1):
        folder = tmp_path / f"run{seed}"
        folder.mkdir()
        records.write(folder, make(seed=seed))
    frame = records.load(tmp_path)
    assert sorted(frame.seed) == [0, 1]
    assert frame.ap_box.tolist() == [10.0, 10.0]
    assert frame.ap75_mask.tolist() == [12.0, 12.0]
    assert frame.apl_mask.isna().all()
    assert {"macs", "params", "fingerprint", "path"} <= set(frame.columns)
    assert records.load(tmp_path / "run0" / "nothing").empty


def test_a_record_of_before_processors_were_noted(tmp_path):
    path = records.write(tmp_path, make(machine={"vendor_id": "AuthenticAMD"}))
    assert records.read(path).machine == {"vendor_id": "AuthenticAMD"}
    content = json.loads(path.read_text())
    del content["machine"]
    path.write_text(json.dumps(content))
    assert records.read(path).machine == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"version": 1, "stu', "cannot read"),
        ("[]", "is of version None, this suite reads 1"),
        ('{"version": 0}', "is of version 0, this suite reads 1"),
        ('{"version": 1, "study": "x"}', "is no whole record"),
    ],
)
def test_a_record_that_cannot_be_used(tmp_path, content, message):
    path = tmp_path / "record.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        records.load(tmp_path)
    assert str(path) in str(caught.value)
    assert path.read_text() == content  # nothing is lost


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(box=3), "box is 3"),
        (dict(mask=dict(AP="high")), "mask: AP is 'high'"),
        (dict(data=None), "data is None"),
        (dict(data={"val": None}), "data: val is None"),
        (dict(config=[]), r"config is \[\]"),
        (dict(macs="many"), "macs is 'many'"),
        (dict(variant=None), "variant is None"),
    ],
)
def test_a_record_with_a_wrong_type(tmp_path, changes, message):
    path = records.write(tmp_path, make())
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=f"{message}. Move it away and run again") as caught:
        records.read(path)
    assert str(caught.value).startswith(f"{path} is no whole record: ")
    assert "\n" not in str(caught.value)


def test_a_write_that_breaks_leaves_the_old_record(tmp_path, monkeypatch):
    path = records.write(tmp_path, make())

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device.*record\.json"):
        records.write(tmp_path, make(seed=7))
    assert records.read(path).seed == 0


def test_no_study(tmp_path):
    with pytest.raises(UserError, match=r"no study was run in .*study.json is missing"):
        records.load_study(tmp_path)


def manifest(**changes) -> dict:
    """As of earlier versions, which had no `source`."""
    whole = dict(
        version=records.VERSION,
        study="count",
        question="?",
        scale="mini",
        base="none",
        command="python -m experiments run count",
        runs=[dict(variant="none", seed=0, folder="none-0")],
        variants=[dict(name="none", size="vit-mini", words={}, published={})],
    )
    return {key: value for key, value in (whole | changes).items() if value != "left out"}


def test_a_manifest_without_source(tmp_path):
    write_json(tmp_path / records.MANIFEST, manifest())
    (tmp_path / "none-0").mkdir()
    records.write(tmp_path / "none-0", make())
    found, rows = records.load_study(tmp_path)
    assert found == manifest()
    assert rows["variant"].tolist() == ["none"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(runs="left out"), "it has no 'runs'"),
        (dict(variants="left out"), "it has no 'variants'"),
        (dict(base="left out"), "it has no 'base'"),
        (dict(runs=3), "runs is 3"),
        (dict(runs=[3]), "entry 0 of runs is 3"),
        (dict(runs=[dict(variant="none", seed=0)]), "entry 0 of runs: it has no 'folder'"),
        (dict(variants=[dict(name=1)]), "entry 0 of variants: name is 1"),
        (dict(base="other"), "its base 'other' is none of its variants"),
    ],
)
def test_a_manifest_that_cannot_be_used(tmp_path, changes, message):
    path = tmp_path / records.MANIFEST
    write_json(path, manifest(**changes))
    with pytest.raises(UserError, match=f"{message}. Move it away and run again") as caught:
        records.load_study(tmp_path)
    assert str(caught.value).startswith(f"{path} is no whole manifest: ")
    assert "\n" not in str(caught.value)


def test_a_record_of_before_reach_was_counted_has_none(tmp_path):
    path = records.write(tmp_path, make(reach={"self": [9, 8, 7]}))
    assert records.read(path).reach == {"self": [9, 8, 7]}
    content = json.loads(path.read_text())
    del content["reach"]
    path.write_text(json.dumps(content))
    assert records.read(path).reach is None
    for wrong in ([1], 1, {"self": 1}):
        path.write_text(json.dumps({**content, "reach": wrong}))
        with pytest.raises(UserError, match="reach"):
            records.read(path)
