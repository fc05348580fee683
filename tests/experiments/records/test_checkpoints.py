"""Checkpoints: whole at any moment of a write, and a broken one is found out."""

import errno
import itertools
import os
import sys

import pytest
import torch

from experiments.records import checkpoints


def state(number: int) -> dict:
    return dict(iteration=number, model={"weight": torch.full((1000,), float(number))})


def folder_with(root, *iterations):
    root.mkdir(exist_ok=True)
    for number in iterations:
        checkpoints.save(root, number, state(number))
    return root


def saved_unless_killed(folder, iteration, value, touch: int) -> bool:
    """Save in a process that ends at once, as by SIGKILL, before it opens, writes, flushes to the
    disk, renames or removes for the `touch`-th time. Returns whether it got to the end."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert os.WEXITSTATUS(status) in (0, 9)
        return status == 0
    touches = itertools.count()

    def count(event, _):
        if event in ("open", "os.rename", "os.remove", "fsync", "write") and next(touches) == touch:
            os._exit(9)

    def audited(event, function):
        def call(*args):
            count(event, args)
            return function(*args)

        return call

    try:
        os.fsync = audited("fsync", os.fsync)
        checkpoints._Hashing.write = audited("write", checkpoints._Hashing.write)
        sys.addaudithook(count)
        checkpoints.save(folder, iteration, state(value))
        os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.parametrize("iteration", [4, None])
def test_killed_at_any_moment_of_a_write_the_last_is_whole(
    tmp_path, iteration, caplog, monkeypatch
):
    monkeypatch.setattr(os, "fsync", lambda file: None)  # half of this test's time
    landed = []
    for touch in itertools.count():
        folder = folder_with(tmp_path / str(touch), 1, 2, 3)
        done = saved_unless_killed(folder, iteration, 4, touch)
        last = checkpoints.read(checkpoints.last_whole(folder))
        assert last["iteration"] in ((4,) if done else (3, 4))
        assert last["model"]["weight"].eq(last["iteration"]).all()
        landed.append(last["iteration"])
        # The run that goes on leaves as much as one that nothing happened to.
        checkpoints.save(folder, iteration, state(4))
        names = [2, 3] if iteration is None else [3, 4]
        left = [f"model_{n:07d}.pth" for n in names] + ["model_final.pth"] * (iteration is None)
        assert sorted(path.name for path in folder.glob("*.pth")) == left
        assert not checkpoints.wrong(folder / left[-1])
        if done:
            break
    assert landed == sorted(landed)  # from one moment on it is the new one
    assert {3, 4} == set(landed)
    assert len(landed) > 10
    assert "broken" not in caplog.text


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "cut in half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "one bit flipped": flip_a_bit,
    "empty": lambda path: os.truncate(path, 0),
    "cut, and its checksum missing": lambda path: (
        os.truncate(path, path.stat().st_size // 2),
        path.with_name(f"{path.name}.sha256").unlink(),
    ),
    "flipped, and its checksum empty": lambda path: (
        flip_a_bit(path),
        path.with_name(f"{path.name}.sha256").write_text(""),
    ),
    "checksum not text": lambda path: path.with_name(f"{path.name}.sha256").write_bytes(b"\xff "),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_one_is_named_and_the_one_before_is_used(tmp_path, damage, caplog):
    folder_with(tmp_path, 3, 4)
    DAMAGES[damage](tmp_path / "model_0000004.pth")
    whole = checkpoints.last_whole(tmp_path)
    assert whole == tmp_path / "model_0000003.pth"
    assert checkpoints.read(whole)["iteration"] == 3
    assert f"checkpoint {tmp_path / 'model_0000004.pth'} is broken" in caplog.text
    assert "training starts again" not in caplog.text
    assert checkpoints.last_whole(tmp_path) == whole  # and again


def test_without_its_checksum_a_whole_one_is_used(tmp_path, caplog):
    folder_with(tmp_path, 3, 4)
    (tmp_path / "model_0000004.pth.sha256").unlink()
    assert checkpoints.last_whole(tmp_path) == tmp_path / "model_0000004.pth"
    assert not caplog.text


def test_what_cannot_be_read_is_not_taken_for_broken(tmp_path, monkeypatch):
    """A file system that fails for a moment costs no checkpoint."""
    folder_with(tmp_path, 3, 4)
    before = sorted(path.name for path in tmp_path.iterdir())

    def refuse(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoints.hashlib, "file_digest", refuse)
    with pytest.raises(OSError, match="Input/output"):
        checkpoints.last_whole(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_all_broken(tmp_path, caplog):
    folder_with(tmp_path, 3, 4)
    checkpoints.save(tmp_path, None, state(5))
    for path in tmp_path.glob("*.pth"):
        flip_a_bit(path)
    assert checkpoints.last_whole(tmp_path) is None
    assert caplog.text.count("is broken") == 3
    assert "training starts again" in caplog.text
    caplog.clear()
    assert checkpoints.last_whole(folder_with(tmp_path / "new")) is None
    assert not caplog.text  # nothing was lost where nothing was
