"""Records and manifests: written whole, read back, refused when broken or old."""

import dataclasses
import json

import pytest

from experiments import records
from experiments.errors import UserError


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


def test_a_write_that_breaks_leaves_the_old_record(tmp_path, monkeypatch):
    path = records.write(tmp_path, make())
    monkeypatch.setattr(json, "dump", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        records.write(tmp_path, make(seed=7))
    assert records.read(path).seed == 0


def test_no_study(tmp_path):
    with pytest.raises(UserError, match=r"no study was run in .*study.json is missing"):
        records.load_study(tmp_path)
