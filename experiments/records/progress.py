"""How far a study has come, at each scale."""

from pathlib import Path

from .. import ROOT
from ..data import annotations
from ..scales import SCALES
from . import MANIFEST, RECORD, load_study


def of_study(runs: Path, study: str) -> str:
    """How many of the runs that were last asked for are done, at each scale.

    Raises:
        UserError: as of `load_study`.
    """
    states = []
    for scale in SCALES:
        own = sorted((runs / scale).glob(annotations.study_folder(study, "*")))
        folders = [f for f in (runs / scale / study, *own) if (f / MANIFEST).is_file()]
        for folder in folders:
            manifest, done = load_study(folder)
            on = folder.name.removeprefix(study)  # its set, if it is the user's own
            states.append(f"{scale}{on} {len(done)} of {len(manifest['runs'])} runs")
            if tried := manifest.get("sweep", {}).get("runs"):
                count = sum((folder / run["folder"] / RECORD).is_file() for run in tried)
                states[-1] += f" and {count} of {len(tried)} that choose"
        if not folders and (ROOT / "results" / scale / study).is_dir():
            states.append(f"{scale} in results/")
    return ", ".join(states) or "nothing yet"
