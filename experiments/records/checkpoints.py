"""Checkpoints that are there whole or not at all, and known to be what was written.

`model_0000029.pth` is the state after iteration 29; `model_0000029.pth.sha256` beside it is its
checksum, as the command sha256sum reads it.
"""

import hashlib
import logging
import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from . import LAST_WEIGHTS

KEPT = 2  # of those during training
_BROKEN = ".broken"  # behind the name of one that is
_LOGGER = logging.getLogger("detectron2")  # whose lines are kept in a run's log


def save(folder: Path, iteration: int | None, state: dict[str, Any]) -> Path:
    """Write a checkpoint, and remove those that it makes superfluous.

    Killed at any moment, the folder has this one whole, or those before.

    Args:
        iteration: the last one done; None: training has ended, this is `LAST_WEIGHTS`.
        state: tensors, numbers, words, and lists and dicts of them.
    """
    path = folder / (LAST_WEIGHTS if iteration is None else f"model_{iteration:07d}.pth")
    scratch = folder / ".checkpoint"
    try:
        with open(scratch, "wb") as file:
            hashing = _Hashing(file)
            torch.save(state, hashing)
            file.flush()
            os.fsync(file.fileno())
        _write_checksum(path, hashing.sha256.hexdigest())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)  # no space, say: what was written of it only takes more
    _sync(folder)
    for old in _during_training(folder)[KEPT:]:
        _remove(old)
    return path


def last_whole(folder: Path) -> Path | None:
    """The last checkpoint that is whole; None if there is none.

    A broken one is set aside under another name, with a line in the log.

    Raises:
        OSError: one cannot be read: the file system's fault, not the checkpoint's.
    """
    candidates = [folder / LAST_WEIGHTS, *_during_training(folder)]
    # What is a link is of another run.
    own = [path for path in candidates if path.is_file() and not path.is_symlink()]
    for path in own:
        if not (problem := wrong(path)):
            return path
        _LOGGER.warning("checkpoint %s is broken: %s. Going on from the one before", path, problem)
        os.replace(path, path.with_name(path.name + _BROKEN))
    if own:
        _LOGGER.warning("no checkpoint is left in %s: training starts again", folder)
    return None


def wrong(path: Path) -> str:
    """What is wrong with a checkpoint, "" if nothing is.

    Without its checksum, as after a copy of the .pth alone, the format's own checksums must do.

    Raises:
        OSError: it cannot be read.
    """
    note = _checksum(path)
    expected = note.read_bytes().split()[:1] if note.is_file() else []
    with open(path, "rb") as file:
        if expected:
            found = hashlib.file_digest(file, "sha256").hexdigest().encode()
            return "" if [found] == expected else "its bytes are not those that were written"
        try:
            with zipfile.ZipFile(file) as archive:
                return "its parts are damaged" if archive.testzip() else ""
        except zipfile.BadZipFile as error:
            return str(error)


def read(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU. Nothing in it is executed."""
    # Mapped: the processes of a node share what they read.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def last(folder: Path) -> str:
    """Name of the last checkpoint in the folder, "none" without one."""
    return next((path.name for path in _during_training(folder)), "none")


def remove_all_but_last(folder: Path) -> None:
    """Keep `LAST_WEIGHTS` only: for a run that has its record."""
    for path in [*_during_training(folder), *folder.glob(f"*{_BROKEN}")]:
        _remove(path)


def _during_training(folder: Path) -> list[Path]:
    """The latest first."""
    return sorted(folder.glob("model_" + "[0-9]" * 7 + ".pth"), reverse=True)


def _checksum(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _write_checksum(path: Path, digest: str) -> None:
    """Before the file is given its name, so that no whole file is ever without."""
    scratch = path.with_name(".sha256")
    with open(scratch, "w") as file:
        file.write(f"{digest}  {path.name}\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, _checksum(path))


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    _checksum(path).unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """The folder's list of names, to the disk too."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


class _Hashing:
    """A file that is written to, and the checksum of what was."""

    def __init__(self, file):
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()
