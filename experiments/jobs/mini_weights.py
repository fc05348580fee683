"""The weights that runs at mini scale start from, as they come with the suite: made, and kept."""

import os
from pathlib import Path

from safetensors.torch import save_file

from backbones.weights import catalog

from .. import ROOT, records
from ..records import checkpoints

WORD, SIZE = "windows_mini", "vit-mini"


def keep(study: Path, folder: Path = catalog.SHIPPED) -> Path:
    """Take the encoder of a finished run as what others start from, in half precision; its record
    goes beside it.

    Args:
        study: folder of the study experiments/studies/_windows_mini.py, with one run.
        folder: to write to.

    Raises:
        UserError: the study was not run.
    """
    _, runs = records.load_study(study)
    run = Path(runs.path.item()).parent
    state = checkpoints.read(run / records.LAST_WEIGHTS)["model"]
    name = "backbone.net."
    encoder = {k.removeprefix(name): v for k, v in state.items() if k.startswith(name)}
    halves = {k: v.half() if v.is_floating_point() else v for k, v in encoder.items()}
    path = folder / catalog.source(WORD, SIZE).file
    folder.mkdir(exist_ok=True)
    scratch = path.with_suffix(".part")
    save_file({k: v.contiguous() for k, v in halves.items()}, scratch)
    scratch.chmod(0o644)  # safetensors makes it its owner's alone
    os.replace(scratch, path)
    # Where this checkout lies is nobody's concern.
    record = (run / records.RECORD).read_text().replace(f"{ROOT}/", "")
    path.with_suffix(".json").write_text(record)
    return path
