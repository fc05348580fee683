"""Two runs side by side: what changed, the difference in AP and how sure it is, and in cost."""

from pathlib import Path
from typing import Any

import pandas as pd

from experiments import records
from experiments.records import Record

from .bootstrap import DELTA, of_run, paired

_COSTS = {
    "params M": ("params", 1e6),
    "GMACs": ("macs", 1e9),
    "train s": ("train_seconds", 1),
    "images/s in training": ("images_per_second", 1),
    "peak memory MiB": ("peak_memory_mib", 1),
}


def ap_table(ours: str | Path, base: str | Path, delta: float = DELTA) -> pd.DataFrame:
    """COCO's six AP of two finished runs, boxes and masks, a row each.

    Args:
        ours, base: folders of runs.
        delta: AP in 0..100; smaller differences are of no interest.

    Returns:
        Columns kind, figure, base, ours, difference, low and high (95 % interval of the difference,
        over images: it is about these trained detectors), verdict.

    Raises:
        UserError: no such run, other images or objects, or LVIS.
    """
    runs = [records.read(Path(folder) / records.RECORD) for folder in (ours, base)]
    rows = []
    for kind in ("box", "mask"):
        if not all(getattr(run, kind) for run in runs):
            continue
        drawn = [of_run(folder, kind) for folder in (ours, base)]
        for i, (figure, estimate) in enumerate(paired(drawn[:1], drawn[1:]).items()):
            if estimate is None:
                continue
            low, high = estimate.interval()
            rows.append(
                dict(
                    kind=kind,
                    figure=figure,
                    base=drawn[1].values[i],
                    ours=drawn[0].values[i],
                    difference=estimate.value,
                    low=low,
                    high=high,
                    verdict=estimate.verdict(delta),
                )
            )
    return pd.DataFrame(rows)


def cost_table(ours: Record, base: Record) -> pd.DataFrame:
    """Costs of two runs: columns cost, base, ours, ratio."""
    rows = []
    for name, (column, unit) in _COSTS.items():
        values = [getattr(run, column) / unit for run in (base, ours)]
        ratio = values[1] / values[0] if values[0] else float("nan")
        rows.append(dict(cost=name, base=values[0], ours=values[1], ratio=ratio))
    return pd.DataFrame(rows)


def changes(ours: Record, base: Record) -> list[str]:
    """What else differs: config keys, data, device, precision; a line each."""
    sides = [
        _flat(run.config)
        | {"data": run.data["digest"]}
        | {key: getattr(run, key) for key in ("device", "threads", "precision", "git_commit")}
        for run in (base, ours)
    ]
    keys = [k for k in dict.fromkeys([*sides[0], *sides[1]]) if sides[0].get(k) != sides[1].get(k)]
    return [f"{key}: {sides[0].get(key)} -> {sides[1].get(key)}" for key in keys]


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """A nested dict by dotted keys."""
    if not isinstance(node, dict):
        return {prefix: node}
    flat: dict[str, Any] = {}
    for key, part in node.items():
        flat |= _flat(part, f"{prefix}.{key}".lstrip("."))
    return flat
