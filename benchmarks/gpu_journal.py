"""Rows of a GPU check on disk: what was measured stays, whatever ends the command."""

import contextlib
import datetime
import json
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from experiments import ROOT
from experiments.costs import environment

ROWS = "rows.jsonl"
CURRENT = ".current"  # the row that a part is at, for who finds its process dead
# What torch's attention says where a backend does not take an input: an answer, not a failure.
_REFUSALS = ("No available kernel", "No viable backend")


@dataclass(frozen=True)
class Call:
    """One call of the command, as its processes know it."""

    out: str
    device: str  # "cuda" or "cpu"
    tiny: bool
    started: str  # ISO 8601, UTC: tells calls apart

    def mark(self) -> dict:
        """Of every row. A row of another device, torch or size says nothing about this one."""
        return dict(
            device=environment.device_name(self.device), torch=torch.__version__, tiny=self.tiny
        )


class Journal:
    """The rows of a part, on disk."""

    def __init__(self, call: Call, part: str):
        self.call, self.part = call, part
        self.mark = call.mark()
        self.commit = commit()

    def write(self, key: str, error: str = "", **values) -> None:
        """Add a row. Not torn, also if the last one was: its half line is ended first."""
        row = dict(part=self.part, key=key, error=error, **values, **self.mark)
        row |= dict(call=self.call.started, date=now(), commit=self.commit)
        path = Path(self.call.out) / ROWS
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(row).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> dict[str, dict]:
        """The last row of each key."""
        found = [r for r in read(Path(self.call.out)) if self.mark.items() <= r.items()]
        return {row["key"]: row for row in found if row["part"] == self.part}

    def todo(self, keys: list[str]) -> list[str]:
        """Those to do: missing ones, then those that failed in an earlier call or were cut off."""
        rows = self.rows()
        self.write("", planned=len(keys))
        missing = [key for key in keys if key not in rows]
        return missing + [
            key
            for key in keys
            if key in rows
            and rows[key]["error"]
            and (rows[key].get("cut") or rows[key]["call"] != self.call.started)
        ]

    def begin(self, key: str) -> None:
        (Path(self.call.out) / CURRENT).write_text(key)

    def attempt(self, key: str, item: Callable[[], dict]) -> None:
        """A row of what `item` returns, or of what it raises."""
        self.begin(key)
        try:
            values = item()
        except Exception as error:
            if any(words in str(error) for words in _REFUSALS):
                return self.write(key, refused=True)
            traceback.print_exc()
            self.write(key, error=line_of(error))
            if poisoned(error):
                os._exit(3)  # nothing runs on this GPU any more in this process
        else:
            self.write(key, **values)
        return None


def read(out: Path) -> list[dict]:
    """All rows in the folder; a line that a kill has torn is none."""
    path, rows = out / ROWS, []
    for line in path.read_text().splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def line_of(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"[:300]


def poisoned(error: Exception) -> bool:
    """Whether a process can use its GPU no more: after anything but a lack of memory."""
    lacks_memory = isinstance(error, torch.OutOfMemoryError)
    return not lacks_memory and any(w in str(error) for w in ("CUDA error", "CUDA driver error"))


def commit() -> str:
    """Of this checkout; where git is not, as `make gpu-kit` saw it."""
    note = ROOT / "gpu-kit" / "COMMIT"
    return environment.git_commit() or (note.read_text().strip() if note.is_file() else "")


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
