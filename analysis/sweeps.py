"""What a sweep chose: each row's value of one config key, and what it was chosen from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.records import RECORD, read


def chosen(manifest: Mapping[str, Any]) -> dict[str, float]:
    """Row -> factor on its own recipe's value; empty without a sweep."""
    return manifest.get("sweep", {}).get("chosen", {})


def notes(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Of each row what was chosen, and box AP of the runs that chose; none without a sweep."""
    if not (sweep := manifest.get("sweep")):
        return []
    lines = []
    for row, best in sweep["chosen"].items():
        tried = [run for run in sweep["runs"] if run["variant"] == row]
        aps = []
        for run in tried:
            path = folder / run["folder"] / RECORD
            ap = read(path).box.get("AP") if path.is_file() else None
            aps.append("?" if ap is None else f"{ap:.1f}")
        (value,) = (run["value"] for run in tried if run["factor"] == best)
        factors = [run["factor"] for run in tried]
        end = ", the last that was tried: there may be better ones" * (
            best in (min(factors), max(factors))
        )
        lines.append(
            f"{row}: {sweep['key']}={value:g} (x{best:g}{end}), chosen by seed {sweep['seed']}, "
            f"which is not compared: box AP {', '.join(aps)} at "
            f"{', '.join(f'x{factor:g}' for factor in factors)}"
        )
    return lines or [f"a sweep of {sweep['key']}: its values are not chosen yet, call it again"]
