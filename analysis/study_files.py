"""A study's tables and plots as files, in its folder and in results/."""

import shutil
from pathlib import Path

from . import categories, plots, reach, tables
from .results import Results


def write(found: Results, wide: bool) -> list[Path]:
    """A study's tables and plots, beside what was asked for; the files written."""
    folder = found.folder
    found.table.to_csv(folder / "table.csv", index=False)
    (folder / "table.md").write_text(tables.markdown(found, wide))
    tables.runs(found).to_csv(folder / "runs.csv", index=False)
    categories.of_study(found).to_csv(folder / "categories.csv", index=False)
    written = [folder / n for n in ("table.csv", "table.md", "runs.csv", "categories.csv")]
    for name in ("forest", "ap_vs_macs"):
        written += plots.ALL[name](found, folder / name)
    if len(counts := reach.counts(tables.in_order(found))):
        counts.to_csv(folder / "reach.csv", index=False)
        written += [folder / "reach.csv", *plots.reach_curve(found, folder / "reach_curve")]
    return written


def keep(files: list[Path], scale: str, study: str) -> list[Path]:
    """Copies in results/."""
    kept = Path("results") / scale / study
    kept.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copy(path, kept)) for path in files]
