"""Would another set of seeds say the same: a study's verdicts from disjoint sets of its seeds."""

from pathlib import Path

import pandas as pd

from experiments import records
from experiments.errors import UserError

from . import results

DECIDED = ("better", "worse", "equal")


def load(folder: str | Path, size: int, delta: float | None = None) -> pd.DataFrame:
    """Box AP of each row but the base, from each of as many disjoint sets of `size` seeds as all
    rows have in common: set, seeds, variant, diff with its interval (`low`, `high`), verdict; and
    of the runs their command, device and commit.

    Raises:
        UserError: nothing was run there, or not `size` seeds of all rows.
    """
    manifest, runs = records.load_study(folder)
    names = [variant["name"] for variant in manifest["variants"]]
    mine = [set(runs["seed"][runs["variant"] == name]) if len(runs) else set() for name in names]
    seeds = sorted(set.intersection(*mine))
    if size < 2 or len(seeds) < size:
        raise UserError(
            f"{folder} has {len(seeds)} seeds of all rows, for sets of {size}: run it with SEEDS= "
            "a multiple of that, two or more a set"
        )
    rows = []
    for number, start in enumerate(range(0, len(seeds) - size + 1, size), start=1):
        chosen = seeds[start : start + size]
        table = results.load(folder, delta, chosen).table.set_index("variant")
        for name in names:
            if name != manifest["base"]:
                rows.append(
                    dict(
                        set=number,
                        seeds=" ".join(map(str, chosen)),
                        variant=name,
                        diff=table.at[name, "ap_box_diff"],
                        low=table.at[name, "ap_box_diff_low"],
                        high=table.at[name, "ap_box_diff_high"],
                        verdict=table.at[name, "ap_box_verdict"],
                    )
                )
    whence = {key: ", ".join(sorted(set(runs[key]))) for key in ("device", "git_commit")}
    return pd.DataFrame(rows).assign(command=manifest["command"], **whence)


def totals(table: pd.DataFrame) -> list[str]:
    """Of each row, in how many sets it is decided, and how; a line each."""
    lines = []
    for name, mine in table.groupby("variant", sort=False):
        found = mine["verdict"].value_counts()
        decided = [f"{word} in {found[word]}" for word in DECIDED if word in found]
        lines.append(f"{name}: {', '.join(decided) or 'decided in none'} of {len(mine)} sets")
    return lines
