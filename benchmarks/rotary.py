"""What rotary positions cost: a ViT with them beside the same without, and EVA-02 beside timm's.

Each row is a process of its own; rows of a case take turns, so that what else the machine does hits
all alike, and each runs once before it counts. Time and memory are medians; ratios are to the first
row of the case, the median of those of each turn. Forward passes have no gradients; training is
forward and backward, without an optimizer. EVA-02 has no windows, as timm's, which has a class
token and a norm behind the last block, too.
"""

import multiprocessing
import statistics
from pathlib import Path

import pandas as pd
from rich.console import Console
from tabulate import tabulate

from . import page, worker
from .cases import Case
from .rows import Row

SUITE = "rotary"
_VIT = ("fused", "rope", "rope in windows")
CASES = (
    Case(rel_pos=False, implementations=_VIT, rounds=5),
    Case(rel_pos=False, tokens=32, mode="train", implementations=_VIT, rounds=9),
    Case(
        size="eva02-b",
        blocks="all global",
        rel_pos=False,
        implementations=("timm", "rope of tokens"),
        rounds=7,
    ),
)
ROWS = [f"{case}: {', '.join(case.implementations)}" for case in CASES]


def measure(cases: tuple[Case, ...] = CASES) -> pd.DataFrame:
    """A line per case and row: seconds, fastest, slowest, peak_mib, runs, error; time_ratio and
    memory_ratio to the first row of the case."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["benchmarks.worker", "timm.models.eva"])
    return pd.concat([_measure(case, processes) for case in cases], ignore_index=True)


def _measure(case: Case, processes) -> pd.DataFrame:
    rows = {
        name: Row(processes, worker.measure, case, name, "cpu") for name in case.implementations
    }
    try:
        for row in rows.values():
            row.wait()
            row.run()
        for _ in range(case.rounds):
            for row in rows.values():
                if sample := row.run():
                    row.samples.append(sample)
    finally:
        for row in rows.values():
            row.stop()
    first = next(iter(rows.values())).samples
    return pd.DataFrame([_line(case, name, row, first) for name, row in rows.items()])


def _line(case: Case, name: str, row: Row, first: list[tuple[float, float]]) -> dict:
    line = dict(case=str(case), row=name, runs=len(row.samples), error=row.error)
    if row.error or not first:
        return line
    seconds, peaks = zip(*row.samples, strict=True)
    pairs = list(zip(row.samples, first, strict=True))
    return line | dict(
        seconds=statistics.median(seconds),
        fastest=min(seconds),
        slowest=max(seconds),
        peak_mib=statistics.median(peaks),
        time_ratio=statistics.median(own[0] / other[0] for own, other in pairs),
        memory_ratio=statistics.median(own[1] / other[1] for own, other in pairs),
    )


def shown(table: pd.DataFrame, style: str = "simple") -> str:
    """The table, as text."""
    columns = {
        "": table.case,
        "row": table.row,
        "seconds": [
            r.error or f"{r.seconds:.3g} ({r.fastest:.3g} to {r.slowest:.3g}, {r.runs} runs)"
            for r in table.itertuples()
        ],
        "time ratio": ["" if pd.isna(v) else f"{v:.3f}" for v in table.time_ratio],
        "peak MiB": ["" if pd.isna(v) else f"{v:,.0f}" for v in table.peak_mib],
        "memory ratio": ["" if pd.isna(v) else f"{v:.2f}" for v in table.memory_ratio],
    }
    return tabulate(columns, headers="keys", tablefmt=style, disable_numparse=True)


def bench(to: Path, provenance: dict, console: Console, cases: tuple[Case, ...] = CASES) -> None:
    """Measure, print the table, and keep it as rotary.csv and rotary.md."""
    table = measure(cases).assign(**provenance)
    console.print(shown(table))
    text = [shown(table, "pipe"), "", *__doc__.splitlines()[2:]]
    written = page.write(to, SUITE, table, text, provenance)
    console.print(f"\nwritten: {'  '.join(map(str, written))}")
