"""Speed and memory of encoders side by side, each row in a process of its own; medians are shown.

Rows of a case take turns on a CPU, so that what else the machine does hits all alike, and follow
each other on a GPU, which each then has to itself.
"""

import datetime
import math
import multiprocessing
import statistics
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from experiments import commands
from experiments.costs import environment
from experiments.errors import UserError, unknown

from . import (
    evaluation,
    gpu_check,
    input_pipeline,
    pretraining,
    probe,
    report,
    rotary,
    training_loop,
    weights,
    worker,
)
from .cases import OURS, OURS_ON_GPU, PEERS, SUITES, Case, suite
from .implementations import MODULES
from .rows import Row

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)
console = Console(soft_wrap=True, markup=False, highlight=False)
_OF_ROWS = (evaluation, input_pipeline, training_loop, pretraining, rotary, probe)
OTHERS = (weights.SUITE, gpu_check.SUITE, *(module.SUITE for module in _OF_ROWS))


@app.command()
def bench(
    name: Annotated[
        str, typer.Argument(help=f"Suite: {', '.join((*SUITES, *OTHERS))}.")
    ] = "default",
    device: Annotated[str, typer.Option(help="cpu or cuda; default: cuda if there is one.")] = "",
    only: Annotated[
        str, typer.Option(help='Cases whose description has all these words, e.g. "128 train".')
    ] = "",
    implementations: Annotated[
        str, typer.Option(help="Some rows only, comma-separated, e.g. fused,detectron2.")
    ] = "",
    list_cases: Annotated[bool, typer.Option("--list", help="Print the cases and stop.")] = False,
    out: Annotated[str, typer.Option(help="Of gpu-check: its folder; default: the device's.")] = "",
    minutes: Annotated[float, typer.Option(help="Of gpu-check: all that it may take.")] = 8,
    tiny: Annotated[bool, typer.Option("--tiny", help="Of gpu-check: rehearse it.")] = False,
) -> int:
    """Measure a suite, print a table per case and add the rows to results/benchmarks/<device>/.

    gpu-check: all parts of it, or --only some, comma-separated; exit code 1 if rows are missing or
    failed.
    """
    if name not in (names := (*SUITES, *OTHERS)):
        raise unknown("suite", name, names)
    if name == weights.SUITE:
        kinds = weights.kinds_of(only)
        if list_cases:
            console.print("\n".join(f"{kind}: {', '.join(weights.ROWS)}" for kind in kinds))
            return 0
        provenance = _provenance("cpu")
        weights.bench("vit-h", kinds, report.folder(provenance), provenance, console)
        return 0
    for of_rows in _OF_ROWS:
        if name == of_rows.SUITE:
            if list_cases:
                console.print("\n".join(of_rows.ROWS))
                return 0
            trains = of_rows in (training_loop, pretraining, probe) and torch.cuda.is_available()
            provenance = _provenance("cuda" if trains else "cpu")
            of_rows.bench(report.folder(provenance), provenance, console)
            return 0
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise UserError(f"device {device!r} is not here: cpu is, cuda with a GPU that torch sees")
    if name == gpu_check.SUITE:
        if list_cases:
            console.print("\n".join(f"{n}: {p.what}" for n, p in gpu_check.PARTS.items()))
            return 0
        place = dict(device=environment.device_name(device), threads=None)
        folder = Path(out) if out else report.folder(place) / gpu_check.SUITE
        return 0 if gpu_check.check(folder, device, minutes, tiny, only, console) else 1
    wanted = [row for row in implementations.split(",") if row]
    for row in wanted:
        if row not in (names := OURS + OURS_ON_GPU + PEERS):
            raise unknown("implementation", row, names)
    cases = [c for c in suite(name, device) if all(word in str(c) for word in only.split())]
    if not cases:
        raise UserError(f"no case of suite {name} has all of {only!r}: see --list")
    if list_cases:
        for case in cases:
            console.print(f"{case}: {', '.join(_rows(case, wanted))}")
        return 0

    provenance = _provenance(device)
    folder = report.folder(provenance)
    started = _now()
    # Processes fork from one that has the libraries loaded and has computed nothing.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["benchmarks.worker", *MODULES])
    for number, case in enumerate(cases, start=1):
        console.print(f"\n[{number}/{len(cases)}] {case}")
        rows = _measure(case, _rows(case, wanted), device, processes)
        table = report.table(case, rows, dict(date=_now(), run=started, **provenance))
        console.print(report.shown(table))
        if not wanted:
            report.keep(table, folder)
    if wanted:
        console.print("\nnot kept: ratios are among all rows of a case, some were left out")
        return 0
    compared = report.over_window_only(folder)
    if len(compared):
        console.print("\n" + report.shown_over_window_only(compared))
    report.markdown(folder)
    console.print("\nwritten: " + "  ".join(str(path) for path in report.plot(folder)))
    return 0


def _provenance(device: str) -> dict:
    return dict(
        device=environment.device_name(device),
        threads=torch.get_num_threads() if device == "cpu" else None,
        commit=environment.git_commit(),
        **environment.versions(report.PACKAGES),
    )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _rows(case: Case, wanted: list[str]) -> list[str]:
    return [row for row in case.implementations if not wanted or row in wanted]


def _measure(case: Case, names: list[str], device: str, processes) -> list[dict]:
    measure = _one_by_one if device == "cuda" else _in_turns
    rows, rates = measure(case, names, device, processes)
    for row in rows.values():
        if row.error:
            row.samples.clear()
    return [
        dict(
            implementation=name,
            seconds=statistics.median(s for s, _ in row.samples) if row.samples else None,
            fastest=min((s for s, _ in row.samples), default=None),
            slowest=max((s for s, _ in row.samples), default=None),
            runs=len(row.samples),
            peak_mib=statistics.median(m for _, m in row.samples) if row.samples else None,
            weights_mib=row.weights,
            matrix_gflops=statistics.median(rates) / 1e9,
            error=row.error,
            kernels=row.kernels,
        )
        for name, row in rows.items()
    ]


def _one_by_one(
    case: Case, names: list[str], device: str, processes
) -> tuple[dict[str, Row], list[float]]:
    """On a GPU, which a row has to itself: memory that it once took is not given back in between,
    and rows beside each other would not fit. Rows, and rates of matrix products in FLOP/s."""
    rate = Row(processes, worker.matrix_rate, case.dtype, device)
    try:
        rate.wait()
        sample = rate.run()
    finally:
        rate.stop()
    rows = {}
    for name in names:
        rows[name] = row = Row(processes, worker.measure, case, name, device)
        try:
            row.wait()
            for turn in range(case.rounds):
                with console.status(f"{name}: round {turn + 1} of {case.rounds}"):
                    if found := row.run():
                        row.samples.append(found)
            row.name_kernels()
        finally:
            row.stop()
    return rows, [sample[0] if sample else math.nan]


def _in_turns(
    case: Case, names: list[str], device: str, processes
) -> tuple[dict[str, Row], list[float]]:
    """On a CPU: what else the machine does hits all alike. As `_one_by_one`."""
    rate = Row(processes, worker.matrix_rate, case.dtype, device)
    rows = {name: Row(processes, worker.measure, case, name, device) for name in names}
    try:
        for row in (rate, *rows.values()):
            row.wait()
        for name, row in rows.items():
            if case.warm_up or name == "compiled":
                row.run()
        rates = []
        for turn in range(case.rounds):
            sample = rate.run()
            rates.append(sample[0] if sample else math.nan)
            for name, row in rows.items():
                with console.status(f"round {turn + 1} of {case.rounds}: {name}"):
                    sample = row.run()
                if sample:
                    row.samples.append(sample)
    finally:
        for row in (rate, *rows.values()):
            row.stop()
    return rows, rates


if __name__ == "__main__":
    sys.exit(commands.run(app, console))
