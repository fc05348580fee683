"""What is done of an evaluation under way, kept so that the next call goes on from there."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from detectron2.utils import comm

_TOGETHER = 2**16  # detections that are in memory at once while they are scored


class Parts:
    """Detections of the batches that are done: a file of each process, a JSON line of each batch.

    Args:
        folder: what lies there is removed if it is of another digest.
    """

    def __init__(self, folder: Path, digest: str):
        self.folder = folder
        if comm.is_main_process():
            note = folder / "digest"
            if not note.is_file() or note.read_text() != digest:
                self.remove()
                folder.mkdir(parents=True)
                note.write_text(digest)

    def remove(self) -> None:
        if self.folder.exists():
            shutil.rmtree(self.folder)

    @contextlib.contextmanager
    def append(self, process: int) -> Iterator[Callable[[dict], None]]:
        """A function that adds a line to this process's file."""
        with open(self.folder / f"{process}.jsonl", "a") as file:

            def write(line: dict) -> None:
                file.write(json.dumps(line) + "\n")
                file.flush()

            yield write

    def lines(self) -> dict[int, tuple[Path, int]]:
        """File and offset of each batch's line; what follows the last whole line is cut off."""
        found = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            with open(path, "r+b") as file:
                end = 0
                for line in file:
                    try:
                        number = json.loads(line)["batch"]
                    except ValueError:
                        break
                    if not line.endswith(b"\n"):
                        break
                    found[number] = (path, end)
                    end += len(line)
                file.truncate(end)
        return found

    def merge(self, images: list[list[int]], path: Path) -> float:
        """Write all detections, in the split's order, into one file of COCO's result format.

        Args:
            images: ids of each batch's images.

        Returns:
            Seconds that detecting took.
        """
        seconds, written = 0.0, False
        with open(path, "w") as file:
            file.write("[")
            for line in self._ordered(images):
                seconds += line["seconds"]
                if line["detections"]:
                    file.write(", " * written + json.dumps(line["detections"])[1:-1])
                    written = True
            file.write("]")
        return seconds

    def read(self, images: list[list[int]]) -> Iterator[list[dict]]:
        """All detections, in the split's order: those of so many whole batches as make `_TOGETHER`
        or a little more at a time."""
        found = []
        for line in self._ordered(images):
            found += line["detections"]
            if len(found) >= _TOGETHER:
                yield found
                found = []
        yield found

    def _ordered(self, images: list[list[int]]) -> Iterator[dict]:
        """The lines of all batches."""
        lines = self.lines()
        if missing := [number for number in range(len(images)) if number not in lines]:
            raise RuntimeError(
                f"{self.folder} lacks batches {missing[:9]}: do all processes see it?"
            )
        with contextlib.ExitStack() as stack:
            parts = {path: stack.enter_context(open(path, "rb")) for path, _ in lines.values()}
            for number, ids in enumerate(images):
                path, offset = lines[number]
                parts[path].seek(offset)
                line = json.loads(parts[path].readline())
                if line["images"] != ids:
                    raise RuntimeError(
                        f"{path}: batch {number} is of images {line['images']}, not {ids}"
                    )
                yield line
