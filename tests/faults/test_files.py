"""Full and read-only disks, broken checkpoints, torn files: one line, and nothing is lost."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

import analysis.__main__
import experiments.__main__
from experiments.launching import view
from experiments.records import checkpoints
from tests.conftest import study_folder
from tests.faults.faulty import Faulty, call_here, error_of, mount, unmount

pytestmark = pytest.mark.faults

# Checkpoints are written after the iterations 1 and 3, and at the end, after 4.
FULL = {
    "checkpoint": {3: "fill(folder, leave=1 << 20)"},  # during its writing
    "metrics": {3: "fill(folder)"},  # and whatever else is written
    "tensorboard": {},
    "predictions": {"evaluate": "fill(folder, leave=90_000)"},
    "record": {"record": "fill(folder)"},
    "read-only": {
        3: "os.system(f'mount --bind {folder} {folder} && mount -o remount,bind,ro {folder}')"
    },
}
BROKEN = {
    "cut": {4: "raise RuntimeError('on purpose')"},
    "flipped": {4: "raise RuntimeError('on purpose')"},
    "all": {4: "raise RuntimeError('on purpose')"},
    "final": {"evaluate": "raise RuntimeError('on purpose')"},
}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def assert_same_end(folder: Path, whole: Path) -> None:
    torch.testing.assert_close(weights(folder), weights(whole), rtol=0, atol=0)
    found = "coco_instances_results.json"
    assert json.loads((folder / found).read_text()) == json.loads((whole / found).read_text())
    one, other = (json.loads((f / "record.json").read_text()) for f in (folder, whole))
    assert (one["box"], one["mask"]) == (other["box"], other["mask"])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)


@pytest.fixture(scope="module")
def study(small_set, tmp_path_factory):
    """Every row breaks in the first call, what broke is mended or broken further, and the same
    command is called again. Yields the study, what the calls said, and what was there between."""
    root = tmp_path_factory.mktemp("files")
    faulty = Faulty(root, small_set, {"whole": {}, **FULL, **BROKEN})
    folders = faulty.folders()
    mounted = []
    try:
        for name in FULL:
            mount(folders[name] / ("tensorboard" * (name == "tensorboard")), 48, mounted)
        filler = folders["tensorboard"] / "tensorboard" / "filler"
        filler.write_bytes(bytes(48 << 20))
        first = faulty.call()
        whole = {
            name: [p.name for p in folder.glob("model_*.pth") if not checkpoints.wrong(p)]
            for name, folder in folders.items()
        }
        unmount(folders["read-only"])  # what was mounted over it
        for name in FULL:
            for filler in folders[name].rglob("filler"):
                filler.unlink()
        cut(folders["cut"] / "model_0000003.pth")
        flip(folders["flipped"] / "model_0000003.pth")
        for path in folders["all"].glob("model_*.pth"):
            flip(path)
        cut(folders["final"] / "model_final.pth")
        faulty.write({})
        second = faulty.call()
        yield faulty, folders, first, whole, second
    finally:
        for folder in reversed(mounted):
            while unmount(folder):
                pass


def test_everything_ends_in_the_second_call(study):
    _, _, first, _, second = study
    assert first.returncode == 1, first.stdout + first.stderr
    assert "whole  seed 0  done" in first.stdout
    assert second.returncode == 0, second.stdout + second.stderr


@pytest.mark.parametrize("name", FULL)
def test_a_disk_that_refuses_is_one_line(name, study):
    _, folders, first, whole, _ = study
    line = error_of(name, first.stdout)
    assert str(folders[name]) in line
    assert ("ead-only" if name == "read-only" else "o space left") in line
    assert "the same command goes on from the last checkpoint" in line
    assert whole[name] or name == "tensorboard"  # full from the first line on


@pytest.mark.parametrize("name", [*FULL, *BROKEN])
def test_the_same_command_ends_as_if_undisturbed(name, study):
    _, folders, _, _, second = study
    assert f"{name}  seed 0  done" in second.stdout
    assert_same_end(folders[name], folders["whole"])


@pytest.mark.parametrize(
    ("name", "start"), [("cut", 2), ("flipped", 2), ("all", 0), ("final", 4), ("checkpoint", 2)]
)
def test_a_broken_checkpoint_is_named_and_the_one_before_is_used(name, start, study):
    _, folders, *_ = study
    log = (folders[name] / "log.txt").read_text()
    assert log.count(f"Starting training from iteration {start}\n") == (2 if start == 0 else 1)
    assert ("training starts again" in log) == (name == "all")
    assert ("is broken: " in log) == (name in BROKEN)


def test_no_checkpoint_during_training_is_left(study):
    _, folders, *_ = study
    for folder in folders.values():
        assert [p.name for p in folder.glob("model_*.pth")] == ["model_final.pth"]


def test_a_torn_line_of_metrics_is_left_out(study):
    _, folders, *_ = study
    path = folders["whole"] / "metrics.json"
    before = path.read_text()
    whole = json.loads(before.splitlines()[-1])
    path.write_text(before + '{"iteration": 4, "total_lo')
    try:
        assert view._last_line(path) == whole
        code, output = call_here(analysis.__main__, "study", folders["whole"].parent)
        assert code == 0, output
    finally:
        path.write_text(before)


@pytest.mark.parametrize("name", ["record.json", "study.json"])
def test_a_torn_record_or_manifest_is_one_line(name, study):
    """The next run of the study writes its manifest anew."""
    faulty, folders, *_ = study
    path = folders["whole"] / name if name == "record.json" else folders["whole"].parent / name
    before = path.read_text()
    path.write_text(before[: len(before) // 2])
    try:
        code, output = call_here(analysis.__main__, "study", folders["whole"].parent)
        (line,) = output.splitlines()
        assert code == 2
        assert f"cannot read {path}: " in line
        assert "run again" in line
        code, output = call_here(experiments.__main__, *faulty.command()[5:])
        assert code == (2 if name == "record.json" else 0), output
        if name == "record.json":
            assert f"cannot read {path}: " in output
        else:
            assert json.loads(path.read_text())["study"] == "faulty"
    finally:
        path.write_text(before)


def test_a_disk_that_is_full_or_read_only_at_the_start(small_set, tmp_path):
    faulty = Faulty(tmp_path / "start", small_set, {"whole": {}})
    mounted = []
    try:
        mount(faulty.root / "runs", 1, mounted)
        folder = study_folder(faulty.root / "runs", "faulty", small_set)
        folder.mkdir(parents=True)
        (faulty.root / "runs" / "filler").write_bytes(bytes(1 << 20))
        code, output = call_here(experiments.__main__, *faulty.command()[5:])
        assert (code, output.count("\n")) == (2, 1)
        assert f"error: cannot write to {folder}: No space left" in output
        assert "--runs" in output
        (faulty.root / "runs" / "filler").unlink()
        subprocess.run(["mount", "-o", "remount,ro", faulty.root / "runs"], check=True)
        code, output = call_here(experiments.__main__, *faulty.command()[5:])
        assert (code, output.count("\n")) == (2, 1)
        assert f"error: cannot write to {folder}: Read-only" in output
    finally:
        for folder in mounted:
            unmount(folder)
