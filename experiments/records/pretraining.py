"""What a finished pre-training leaves behind."""

from dataclasses import dataclass, field
from typing import Any

FOLDER = "pretrained"  # beside the studies of a scale
RECORD = "pretraining.json"


@dataclass(frozen=True)
class PretrainingRecord:
    """One finished pre-training, in `RECORD`."""

    recipe: str
    scale: str
    size: str
    seed: int
    fingerprint: str
    figures: dict[
        str, float
    ]  # on the validation images: see `experiments.jobs.pretraining.validate`
    params: int  # of all that is trained
    encoder_params: int
    train_macs: int | None  # of one image's forward and backward pass
    train_seconds: float
    images_per_second: float
    peak_memory_mib: float
    memory_kind: str
    precision: str
    device: str
    threads: int
    processes: int
    skipped: int
    versions: dict[str, str]
    git_commit: str
    started: str
    finished: str
    data: dict[str, Any]  # images (of train and val), train, val (folders), digest
    config: dict[str, Any]
    machine: dict[str, str] = field(default_factory=dict)  # as of `records.Record`
