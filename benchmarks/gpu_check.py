"""Everything that a GPU has to tell, in a few minutes: kernels, tests, times and memory.

Parts follow each other, the most important first, each in a process of its own with a limit of time
and row by row into `rows.jsonl`: what was measured stays, whatever ends the command. A part that
fails, or whose process is killed, does not stop the others. Called again with the same folder, it
does the rows that are missing, then those that failed. `gpu-check.md` shows all of them.
"""

import contextlib
import functools
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from experiments import ROOT
from experiments.errors import UserError, unknown

from . import gpu_page, worker
from .attention_errors import errors, few_settings, settings
from .attention_kernels import kernels
from .attention_times import timed, timings
from .cases import GPU_BATCH, PEERS, Case
from .gpu_journal import CURRENT, ROWS, Call, Journal, line_of, now, poisoned, read
from .implementations import MODULES, build

SUITE = "gpu-check"
_LOG = "log.txt"
Items = dict[str, Callable[[], dict]]


# ---- the parts --------------------------------------------------------------------------------


def _machine(call: Call) -> Items:
    def rate(dtype: torch.dtype, tf32: bool = False) -> dict:
        side = 256 if call.tiny else 8192
        a, b = (torch.randn(side, side, device=call.device).to(dtype) for _ in range(2))
        torch.backends.cuda.matmul.allow_tf32 = tf32
        row = worker.measured(lambda: a @ b, call.device)
        return dict(tflops=2 * side**3 / row["seconds"] / 1e12, **row)

    def copy() -> dict:
        source = torch.randn((2**16 if call.tiny else 2**29), device=call.device)
        target = torch.empty_like(source)
        row = worker.measured(lambda: target.copy_(source), call.device)
        return dict(terabytes_per_second=2 * source.nbytes / row["seconds"] / 1e12, **row)

    return {
        "versions": lambda: _versions(call.device),
        "matrix bfloat16": lambda: rate(torch.bfloat16),
        "copy": copy,
        "matrix tf32": lambda: rate(torch.float32, tf32=True),
        "matrix float32": lambda: rate(torch.float32),
    }


def _versions(device: str) -> dict:
    import timm
    import torchvision
    import transformers

    try:
        import triton
    except ImportError:
        triton = None
    found = dict(
        python=sys.version.split()[0],
        torchvision=torchvision.__version__,
        triton=getattr(triton, "__version__", ""),
        timm=timm.__version__,
        transformers=transformers.__version__,
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version(),
        cores=len(os.sched_getaffinity(0)),
    )
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= dict(
            memory_gib=round(properties.total_memory / 2**30, 1),
            multiprocessors=properties.multi_processor_count,
            capability=f"{properties.major}.{properties.minor}",
            driver=_driver(),
        )
    return found


def _driver() -> str:
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.splitlines()[0].strip()


def _errors(call: Call) -> Items:
    fast = {n: k for n, k in kernels(call.device).items() if not k.compiles}
    slow = {n: k for n, k in kernels(call.device).items() if k.compiles}
    first = {n: k for n, k in slow.items() if not k.last}
    every, few = settings(call.tiny), few_settings(call.tiny)
    return {
        # Setting by setting, so that all kernels share one result in float64.
        f"{name}: {setting}": functools.partial(errors, setting, name, call.device)
        for some, wanted in ((first, few), (fast, every), (slow, few))
        for setting in wanted
        for name, kernel in some.items()
        if kernel.fits(setting)
    }


def _attention(call: Call) -> Items:
    return {
        f"{name}: {timing}": functools.partial(timed, timing, name, call.device)
        for last in (False, True)
        for timing in timings(call.tiny)
        for name, kernel in kernels(call.device).items()
        if kernel.last == last and kernel.fits(timing)
    }


def _networks(call: Call) -> Items:
    return {
        f"{name}: {case}": lambda c=case, n=name: _network(c, n, call.device)
        for case in _cases(call.tiny)
        for name in case.implementations
    }


def _cases(tiny: bool) -> list[Case]:
    """Encoders and detectors on images of 1024 px, Table 3's rows among them."""
    if tiny:
        small = Case(size="vit-ti", tokens=4, rel_pos=False, batch=2, mode="train")
        table_3 = Case("detector", "vit-ti", tokens=4, rel_pos=False, implementations=("fused",))
        return [small, table_3, replace(table_3, blocks="window only")]
    train = Case(dtype="bfloat16", mode="train", batch=GPU_BATCH)
    large = replace(train, size="vit-l")
    table_3 = replace(large, module="detector", rel_pos=False)
    blocks = ("4 global", "window only", "4 conv", "all global")
    cases = [
        replace(train, implementations=("fused", *PEERS)),
        replace(large),
        replace(train, implementations=("triton", "blocks compiled")),
        replace(large, implementations=("triton",)),
        *(replace(table_3, blocks=b) for b in blocks),
        replace(train, module="detector"),
        *(replace(table_3, blocks=b, mode="forward") for b in blocks),
        replace(train, mode="forward", implementations=("fused", *PEERS)),
        replace(large, mode="forward"),
        replace(large, module="detector"),
        replace(large, implementations=PEERS[1:]),
    ]
    slow = [replace(train, implementations=("compiled",))]
    return cases + slow


def _network(case: Case, implementation: str, device: str) -> dict:
    """Seconds and memory of a pass over `case.batch` images, or over half, a quarter, ... of them
    if those do not fit: `batch` says."""
    while True:
        gc.collect()
        try:
            return _network_of(case, implementation, device)
        except torch.OutOfMemoryError:
            if case.batch == 1:
                raise
        torch.cuda.empty_cache()
        case = replace(case, batch=case.batch // 2)


def _network_of(case: Case, implementation: str, device: str) -> dict:
    before = torch.cuda.memory_allocated() / worker.MIB if device == "cuda" else None
    with torch.device(device):  # weights are drawn there, which is faster on a GPU
        net, make_input = build(case, implementation)
    row = worker.measured(worker.runner(case, net, make_input, device), device)
    if before is not None:
        row["peak_mib"] -= before
    return dict(implementation=implementation, **case.key(), **row)


def _tests(journal: Journal) -> None:
    """The tests marked `gpu`, a row each; on a CPU the same functions without the mark."""
    import pytest

    rows = _RowsOfTests(journal)
    words = ["tests/gpu", "-o", "addopts=", "--strict-markers", "-q", "--tb=short"]
    words += ["-m", "gpu" if journal.call.device == "cuda" else "not gpu"]
    if journal.call.tiny:
        words += ["-k", "checkpointing"]
    os.chdir(ROOT)
    code = pytest.main(words, plugins=[rows])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and not rows.nothing_to_do:
        raise RuntimeError(f"pytest ended with {code!r}: see {_LOG}")


class _RowsOfTests:
    """A plugin of pytest that keeps the journal."""

    def __init__(self, journal: Journal):
        self.journal = journal
        self.nothing_to_do = False

    def pytest_collection_finish(self, session) -> None:
        # After the choice by marks, whatever hook makes it.
        by_name = {item.nodeid: item for item in session.items}
        session.items[:] = [by_name[name] for name in self.journal.todo(list(by_name))]
        self.nothing_to_do = not session.items

    def pytest_runtest_logstart(self, nodeid) -> None:
        self.journal.begin(nodeid)

    def pytest_runtest_logreport(self, report) -> None:
        if report.when != "call" and report.passed:
            return
        error = ""
        if report.failed:
            lines = [line for line in report.longreprtext.splitlines() if line.startswith("E ")]
            error = (lines or [f"failed in {report.when}"])[0].removeprefix("E").strip()[:300]
        self.journal.write(
            report.nodeid, error=error, outcome=report.outcome, seconds=report.duration
        )
        if report.failed and poisoned(RuntimeError(report.longreprtext)):
            os._exit(3)  # as in `Journal.attempt`


def _by_items(items: Callable[[Call], Items]) -> Callable[[Journal], None]:
    def work(journal: Journal) -> None:
        wanted = items(journal.call)
        for key in journal.todo(list(wanted)):
            journal.attempt(key, wanted[key])

    return work


@dataclass(frozen=True)
class Part:
    seconds: int  # of eight minutes; what a part leaves over is the next one's
    what: str
    work: Callable[[Journal], None]


PARTS = {
    "machine": Part(20, "versions, matrix rate, copy rate", _by_items(_machine)),
    "errors": Part(60, "kernels of attention against float64", _by_items(_errors)),
    "tests": Part(85, "tests marked gpu", _tests),
    "attention": Part(170, "kernels of attention side by side", _by_items(_attention)),
    "networks": Part(145, "encoders and detectors side by side", _by_items(_networks)),
}


# ---- the command ------------------------------------------------------------------------------


def check(out: Path, device: str, minutes: float, tiny: bool, only: str, console: Console) -> bool:
    """Do what is missing in the folder within some minutes.

    Args:
        only: names of parts, comma-separated; "": all.

    Returns:
        Whether nothing is missing and nothing failed.

    Raises:
        UserError: unknown part, no time.
    """
    wanted = [name for name in only.split(",") if name] or list(PARTS)
    for name in wanted:
        if name not in PARTS:
            raise unknown("part", name, PARTS)
    if not minutes > 0:
        raise UserError(f"minutes={minutes:g} leave no time: give a positive number")
    deadline = time.monotonic() + 60 * minutes
    out.mkdir(parents=True, exist_ok=True)
    call = Call(str(out.resolve()), device, tiny, now())
    if device == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")
    # Processes fork from one that has the libraries loaded and has not touched the GPU.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__, *MODULES])
    first = processes.Process(target=_nothing)
    first.start()
    first.join()

    complete: set[str] = set()
    start, share = time.monotonic(), 0.0
    for limits in (True, False):  # what is cut off by a limit goes on with the time left over
        for name in wanted:
            share += PARTS[name].seconds / sum(PARTS[n].seconds for n in wanted)
            until = start + share * (deadline - start) if limits else deadline
            if name in complete or time.monotonic() > until - 1:
                continue
            began = time.monotonic()
            with console.status(f"{name}: {PARTS[name].what}"):
                if _run(call, name, until, processes):
                    complete.add(name)
            gpu_page.write(out, read(out), call.mark())
            end = "" if name in complete else ", not all of it"
            console.print(f"{name}: {time.monotonic() - began:.0f} s{end}")
    (out / CURRENT).unlink(missing_ok=True)
    rows = gpu_page.latest(read(out), call.mark())
    failed = sum(bool(row["error"]) for (name, _), row in rows.items() if name in wanted)
    console.print(f"\nwritten: {out / gpu_page.PAGE}  {out / ROWS}")
    if missing := [name for name in wanted if name not in complete]:
        console.print(f"not complete: {', '.join(missing)}; the same command goes on with them")
    if failed:
        console.print(f"{failed} rows failed: the page and {out / _LOG} say why")
    return not missing and not failed


def _nothing() -> None:
    pass


def _run(call: Call, part: str, until: float, processes) -> bool:
    """Run a part until it ends or the time comes. A process that dies is started again, without the
    row it died of.

    Returns:
        Whether the part has come to its end.
    """
    journal, current = Journal(call, part), Path(call.out) / CURRENT
    while True:
        current.unlink(missing_ok=True)
        process = processes.Process(target=_serve, args=(call, part))
        process.start()
        try:
            process.join(max(0.0, until - time.monotonic()))
        finally:
            if late := process.exitcode is None:
                _end(process)
        if process.exitcode == 0:
            return True
        at = current.read_text() if current.is_file() else ""
        row = journal.rows().get(at, {})
        undone = at and (row.get("call") != call.started or row.get("cut"))
        if late:
            if undone:
                journal.write(at, error="cut off by the limit of time", cut=True)
            return False
        if process.exitcode == 1 or not at:
            return False  # `_serve` has said why
        if undone:
            journal.write(at, error=f"its process ended with {process.exitcode}: see {_LOG}")


def _end(process) -> None:
    """With all that it has started."""
    for what in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, what)
        if what == signal.SIGTERM:
            process.join(3)
    process.kill()
    process.join()


def _serve(call: Call, part: str) -> None:
    os.setpgrp()  # so that it ends with its children, and all of them with the command
    threading.Thread(target=_end_with_the_command, daemon=True).start()
    log = os.open(Path(call.out) / _LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    print(f"---- {part}, {now()}", flush=True)
    journal = Journal(call, part)
    try:
        PARTS[part].work(journal)
    except Exception as error:
        traceback.print_exc()
        journal.write(gpu_page.WHOLE, error=line_of(error))
        sys.exit(1)
    if journal.rows().get(gpu_page.WHOLE, {}).get("error"):
        journal.write(gpu_page.WHOLE)


def _end_with_the_command() -> None:
    multiprocessing.parent_process().join()
    os.killpg(0, signal.SIGKILL)
