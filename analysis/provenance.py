"""What a table's numbers come from, and whether results/ may keep them."""

import shlex

import pandas as pd

from experiments.errors import UserError

from . import reach
from .results import Results


def check_publishable(results: Results) -> None:
    """Tables in results/ are of whole studies, with their own settings and data.

    Raises:
        UserError: it is not of that kind.
    """
    if (results.table["size"] == "").any():
        raise UserError(
            "results/ keeps what its command makes: it has foreign results, move its foreign/ away"
        )
    words = shlex.split(results.manifest["command"])
    for option in ("--overrides", "--dataset", "--val", "--variants", "--sweep"):
        if option in words:
            raise UserError(f"results/ keeps studies as they are: run it without {option}")
    if (reach.finished(results.table) == 0).any():
        raise UserError("results/ keeps finished studies: some rows of this one are not done")


def of_study(results: Results) -> list[str]:
    """What the table's numbers come from, one line each: command, device, versions, dates."""
    records = results.records
    lines = [f"command: `{results.manifest['command']}`"]
    return lines if records.empty else lines + measured(records)


def measured(records: pd.DataFrame) -> list[str]:
    """What runs and foreign results were made with, one line each."""
    lines = []
    own = records.dropna(subset="device")
    versions = own["versions"].map(lambda v: ", ".join(f"{k} {n}" for k, n in v.items()))
    processes = own["processes"].map(lambda n: f"{n:g} x " if n > 1 else "")
    for name, values in (
        ("device", processes + own["device"] + ", threads " + own["threads"].map("{:g}".format)),
        ("precision", own["precision"]),
        ("peak memory is", own["memory_kind"]),
        ("MACs are for one image of", own["input_size"].map(lambda s: f"{s[0]} x {s[1]}")),
        ("versions", versions),
        ("commit", own["git_commit"]),
        ("finished", records["finished"].str[:10]),
    ):
        lines.append(f"{name}: {'; '.join(sorted(set(values)))}")
    return lines
