"""Files of weights: memory and time of reading and converting a detector.

Each measurement is a process of its own. Reading looks at every value once, as loading does. The
bounds are to read the bytes of the file, and to copy them. "cached": the system has the file in
memory, and what is written may be only there; "disk": the file comes from the disk, and what is
written goes there. "theirs": detectron2's checkpointer, of safetensors the library; converting is
to write a .pth. Memory is what a process takes on top of its start, at its peak; anonymous is what
of it is no page of a file.
"""

import gc
import multiprocessing
import os
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pandas as pd
import safetensors.torch
import torch
from rich.console import Console
from tabulate import tabulate
from torch import Tensor

from backbones.weights import read
from backbones.weights.writers import convert
from experiments.errors import UserError
from experiments.recipe import config

SUITE = "weights"
ROUNDS = 3
_PIECE = 2**20  # bytes


def _read_bytes(path: Path, out: Path) -> None:
    piece = bytearray(_PIECE)
    with path.open("rb", buffering=0) as file:
        while file.readinto(piece):
            pass


def _look(tensors: dict[str, Tensor]) -> None:
    """At every value."""
    for tensor in tensors.values():
        tensor.aminmax()


def _theirs(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    if path.suffix == ".pth":
        return torch.load(path, map_location="cpu", weights_only=True)["model"]
    with path.open("rb") as file:
        arrays = pickle.load(file, encoding="latin1")["model"]  # written by `_write`
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


def _ours(path: Path) -> dict[str, Tensor]:
    contents = read(path)
    return contents.encoder | contents.detector


def _convert(to: str) -> Callable[[Path, Path], None]:
    return lambda path, out: convert(read(path), to, out)


# What is measured, and the row it is compared with.
ROWS: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "read the bytes": (_read_bytes, ""),
    "theirs: read": (lambda path, out: _look(_theirs(path)), "read the bytes"),
    "read": (lambda path, out: _look(_ours(path)), "read the bytes"),
    "copy the bytes": (shutil.copyfile, ""),
    "theirs: convert": (
        lambda path, out: torch.save({"model": _theirs(path)}, out),
        "copy the bytes",
    ),
    **{f"to {to}": (_convert(to), "copy the bytes") for to in ("detectron2", "safetensors", "hf")},
}


def _pickle(state: dict[str, Tensor], path: Path) -> None:
    with path.open("wb") as file:
        pickle.dump({"model": {k: v.numpy() for k, v in state.items()}}, file)


WRITERS: dict[str, Callable[[dict[str, Tensor], Path], None]] = {
    ".pth": lambda state, path: torch.save({"model": state}, path),
    ".pkl": _pickle,
    ".safetensors": safetensors.torch.save_file,
}


def kinds_of(only: str) -> list[str]:
    """Kinds of file, by their suffixes, that have `only` in them.

    Raises:
        UserError: none has.
    """
    if found := [kind for kind in WRITERS if only in kind]:
        return found
    raise UserError(f"no kind of file has {only!r}: kinds are {', '.join(WRITERS)}")


def bench(size: str, kinds: list[str], to: Path, provenance: dict, console: Console) -> None:
    """Measure, print a table per kind of file, and keep them as weights.csv and weights.md.

    Args:
        size: of the Mask R-CNN, a config of scale coco.
        kinds: see `kinds_of`.
        to: folder of results.

    Raises:
        UserError: a measurement ends early.
    """
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__])
    tables = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            path = Path(folder) / f"detector{kind}"
            _in_process(processes, _write, size, path)
            console.print(f"\nMask R-CNN {size}, {kind}, {path.stat().st_size / 1e9:.2f} GB")
            tables.append(measure(path, processes, console).assign(size=size, **provenance))
            console.print(shown(tables[-1]))
            path.unlink()
    if len(kinds) < len(WRITERS):
        console.print("\nnot kept: some kinds were left out")
        return
    to.mkdir(parents=True, exist_ok=True)
    pd.concat(tables).to_csv(to / "weights.csv", index=False, float_format="%.4g")
    lines = [f"# {provenance['device']}, measured by `make bench SUITE=weights`", ""]
    for table in tables:
        kind, gigabytes = table.kind.iloc[0], table.bytes.iloc[0] / 1e9
        lines += [f"Mask R-CNN {size}, {kind}, {gigabytes:.2f} GB:", "", shown(table, "pipe"), ""]
    lines += [*__doc__.splitlines()[2:], f"Medians of {ROUNDS} rounds, rows taking turns.", ""]
    lines += [f"- {name}: {value}" for name, value in provenance.items() if value is not None]
    (to / "weights.md").write_text("\n".join(lines) + "\n")
    console.print(f"\nwritten: {to / 'weights.csv'}  {to / 'weights.md'}")


def measure(path: Path, processes, console: Console) -> pd.DataFrame:
    """A line per row: medians of the seconds, and of memory over the size of the file."""
    size = path.stat().st_size
    taken = []
    for turn in range(ROUNDS):
        for disk in (False, True):
            for row in ROWS:
                with console.status(f"round {turn + 1} of {ROUNDS}: {row}"):
                    sample = _in_process(processes, _measured, row, path, disk)
                column = "disk" if disk else "cached"
                taken.append({"row": row, column: sample[0], "peak": sample[1] / size})
                taken[-1]["anonymous"] = sample[2] / size
    found = pd.DataFrame(taken).groupby("row", sort=False).median().reset_index()
    found["bound"] = [ROWS[row][1] for row in found.row]
    for column in ("cached", "disk"):
        seconds = found.set_index("row")[column]
        found[f"{column}_over_bound"] = found[column] / found.bound.map(seconds)
    return found.assign(kind=path.suffix, bytes=size)


def shown(found: pd.DataFrame, style: str = "simple") -> str:
    """The table, as text."""

    def over(values: pd.Series) -> list[str]:
        return ["" if pd.isna(value) else f"{value:.2f}x" for value in values]

    columns = {
        "": found.row,
        "cached s": [f"{value:.2f}" for value in found.cached],
        "over bound": over(found.cached_over_bound),
        "disk s": [f"{value:.2f}" for value in found.disk],
        "over bound ": over(found.disk_over_bound),
        "peak memory / file": over(found.peak),
        "anonymous / file": over(found.anonymous),
    }
    return tabulate(columns, headers="keys", tablefmt=style, disable_numparse=True)


def _in_process(processes, target: Callable, *arguments):
    """What a function sends, from a process of its own, beside the most memory it took."""
    pipe, theirs = multiprocessing.Pipe()
    process = processes.Process(target=_send, args=(theirs, target, *arguments))
    process.start()
    theirs.close()
    start = pipe.recv()
    pipe.send("run")
    anonymous = start["RssAnon"]
    try:
        while not pipe.poll(0.002):
            anonymous = max(anonymous, _status(process.pid)["RssAnon"])
        seconds = pipe.recv()
        peak = _status(process.pid)["VmHWM"]
    except EOFError:
        raise UserError("a process ended: see above, or memory is too small") from None
    finally:
        pipe.close()
        process.join()
    return seconds, peak - start["VmRSS"], anonymous - start["RssAnon"]


def _send(pipe: Connection, target: Callable, *arguments) -> None:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
    pipe.send(_status(os.getpid()))
    pipe.recv()
    seconds = target(*arguments)
    pipe.send(seconds)
    pipe.poll(None)  # until the other side has read what it took


def _status(process: int) -> dict[str, int]:
    """Bytes by the names of /proc/PID/status."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    sizes = [line.split() for line in lines if line.endswith(" kB")]
    return {name.rstrip(":"): int(size) * 1024 for name, size, _ in sizes}


def _measured(row: str, path: Path, disk: bool) -> float:
    out = path.with_name("out")
    if disk:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    else:
        _read_bytes(path, out)
    start = time.perf_counter()
    ROWS[row][0](path, out)
    if disk:
        for written in (out, *out.glob("*")):
            if written.is_file():
                _to_disk(written)
    seconds = time.perf_counter() - start
    if out.is_dir():
        shutil.rmtree(out)
    out.unlink(missing_ok=True)
    return seconds


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _write(size: str, path: Path) -> None:
    """A detector of random values."""
    torch.manual_seed(0)
    model = config.build_on_meta(config.load(config.base_path("coco", size)).model)
    state = {k: torch.randn(v.shape) * 0.02 for k, v in model.state_dict().items()}
    WRITERS[path.suffix](state, path)
    _to_disk(path)  # what is not there yet cannot leave the cache
