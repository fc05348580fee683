"""Runs: what a study comes to at one scale, size and number of seeds, and where each run lies."""

import copy
import os
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from . import config
from .data.catalog import Data
from .errors import UserError
from .records import MANIFEST, RECORD, VERSION, read, write_json
from .studies import Study, Words


@dataclass(frozen=True)
class Run:
    """One variant at one scale, model size and seed."""

    study: str
    source: str  # what `studies.find` takes: the study's name, or the path of its file
    variant: str
    scale: str
    size: str
    seed: int
    fingerprint: str
    folder: str  # absolute
    cfg: DictConfig
    data: Data

    @property
    def done(self) -> bool:
        """Whether its record is there.

        Raises:
            UserError: there is one, but broken or of another version.
        """
        path = Path(self.folder) / RECORD
        return path.is_file() and read(path).fingerprint == self.fingerprint


def plan(
    study: Study,
    source: str,
    scale: str,
    size: str,
    seeds: int,
    overrides: Words,
    data: Data,
    runs_root: Path,
    variants: list[str] | None = None,
) -> list[Run]:
    """The runs of a study, row by row of each seed: a comparison is complete after each seed.

    A run that another study has finished, or begun, is taken from there.

    Raises:
        UserError: unknown scale, size, variant or config key.
    """
    for name in variants or []:
        study.variant(name)  # that there is one
    names = [v.name for v in study.variants if not variants or v.name in variants]
    rows = {
        name: config.resolve(study, study.variant(name), scale, size, overrides) for name in names
    }
    runs = []
    for seed in range(seeds):
        for name in names:
            cfg = copy.deepcopy(rows[name])
            cfg.train.seed = seed
            mark = config.fingerprint(cfg, data.digest)
            here = runs_root / scale / study.name / f"{name}-{size}-seed{seed}-{mark}"
            there = sorted((runs_root / scale).glob(f"*/*-{mark}"))
            folder = here if here in there or not there else there[0]
            runs.append(
                Run(
                    study.name,
                    source,
                    name,
                    scale,
                    size,
                    seed,
                    mark,
                    str(folder.absolute()),
                    cfg,
                    data,
                )
            )
    return runs


def write_manifest(study: Study, runs: list[Run], folder: Path, command: str) -> None:
    """Write down what was asked for, for the tables (see `records.load_study`)."""
    names = list(dict.fromkeys(run.variant for run in runs))
    rows = [study.variant(name) for name in names]
    write_json(
        folder / MANIFEST,
        dict(
            version=VERSION,
            study=study.name,
            question=study.question,
            scale=runs[0].scale,
            size=runs[0].size,
            base=names[0],
            variants=[
                dict(
                    name=v.name,
                    words={**v.words, **v.words_of_size.get(runs[0].size, {})},
                    published=v.published,
                )
                for v in rows
            ],
            runs=[
                dict(
                    variant=run.variant,
                    seed=run.seed,
                    folder=os.path.relpath(run.folder, folder),
                )
                for run in runs
            ],
            command=command,
        ),
    )


def check_init_weights(runs: list[Run]) -> None:
    """See that the encoder weights the runs start from are there.

    Raises:
        UserError: naming the file and what to do.
    """
    for path in sorted({run.cfg.train.init_weights for run in runs if not run.done} - {""}):
        if not Path(path).is_file():
            raise UserError(
                f"no encoder weights at {Path(path).absolute()}: put {Path(path).name} there (the "
                "config names its source), or start at random with OVERRIDES='train.init_weights='"
            )
