"""The page of a suite that is measured at once. (Apart from report.py: what is measured imports it,
and is to be without plots.)"""

from pathlib import Path

import pandas as pd


def write(
    to: Path, suite: str, found: pd.DataFrame, text: list[str], provenance: dict
) -> list[Path]:
    """The rows of a suite that has a page of its own: <suite>.csv and <suite>.md in the folder.

    Args:
        text: of the page, between its title and the provenance.
    """
    to.mkdir(parents=True, exist_ok=True)
    paths = [to / f"{suite}.csv", to / f"{suite}.md"]
    found.to_csv(paths[0], index=False, float_format="%.4g")
    lines = [f"# {provenance['device']}, measured by `make bench SUITE={suite}`", "", *text, ""]
    lines += [f"- {name}: {value}" for name, value in provenance.items() if value is not None]
    paths[1].write_text("\n".join(lines) + "\n")
    return paths
