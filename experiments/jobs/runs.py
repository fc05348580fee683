"""Runs: what a study comes to at one scale, size and number of seeds, and where each run lies."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from backbones.weights import WeightsError, encoder_of
from backbones.weights import read as read_weights
from backbones.weights.fit import fit_encoder

from ..data.annotations import study_folder
from ..data.catalog import Data
from ..data.subsets import Shares
from ..errors import UserError
from ..json_files import write_json
from ..recipe import config, identity, own_data, resolved
from ..recipe.tuning import FULL
from ..records import MANIFEST, VERSION, Record
from ..studies import Study, Variant, Words
from . import pretraining_runs
from .planned import Run


@dataclass(frozen=True, kw_only=True)
class DetectionRun(Run):
    """One variant at one scale, model size and seed."""

    KIND, JOB = Record, "experiments.jobs.detection.Detection"

    source: str  # what `studies.find` takes: the study's name, or the path of its file

    @property
    def root(self) -> Path:
        """Folder of the runs of its scale."""
        return Path(self.folder).parents[1]

    @property
    def weights(self) -> Path | None:
        """The file of the encoder's initial weights; None: random.

        Raises:
            UserError: as of `config.init_weights`.
        """
        word = self.cfg.train.init_weights
        if config.is_recipe(word):
            return pretraining_runs.weights(self.root, word)
        return config.init_weights(self.cfg)


@dataclass(frozen=True)
class Row:
    """One variant at one scale and model size: a run is a row with a seed, on data."""

    variant: Variant
    size: str
    cfg: DictConfig


def rows(
    study: Study,
    scale: str,
    size: str,
    overrides: Words,
    variants: Sequence[str] = (),
) -> list[Row]:
    """The rows of a study at a scale, all that are for that size or only `variants`, resolved.

    Args:
        size: of rows that have none of their own; "": the study's default.

    Raises:
        UserError: unknown scale, size, variant or config key, or a size where rows have their own.
    """
    for name in variants:
        study.variant(name, scale)  # that there is one
    chosen = [v for v in study.rows(scale) if not variants or v.name in variants]
    if size and all(v.size for v in chosen):
        raise UserError(
            f"the rows of study {study.name!r} have sizes of their own: leave out SIZE={size}, "
            "choose rows with VARIANTS="
        )
    size = size or study.sizes.get(scale, "")
    fitting = [v for v in chosen if not v.only or size in v.only]
    for v in chosen:
        if v not in fitting and (v.name in variants or not fitting):
            raise UserError(f"variant {v.name!r} is for sizes {', '.join(v.only)}, not {size!r}")
    return [
        Row(v, v.size or size, resolved.resolve(study, v, scale, size, overrides)) for v in fitting
    ]


def alike(rows: Sequence[Row]) -> list[str]:
    """What to say of rows that are one and the same run under several names."""
    names: dict[str, list[str]] = {}
    for row in rows:
        names.setdefault(identity.fingerprint(row.cfg, ""), []).append(row.variant.name)
    return [
        f"rows {', '.join(same)} are the same run: nothing in them differs"
        for same in names.values()
        if len(same) > 1
    ]


def shares(cfgs: Iterable[DictConfig]) -> Shares:
    """How much of their data all of them read.

    Raises:
        UserError: they differ, so that a study would be on several sets.
    """
    found = list(dict.fromkeys(map(config.shares, cfgs)))
    if len(found) > 1:
        raise UserError(
            "rows differ in dataloader.train.share, .test.share or .share_seed: a study is on one "
            "set of data, give its share with OVERRIDES="
        )
    return found[0]


def left_random(rows: Sequence[Row]) -> list[str]:
    """What to say of rows that freeze random weights."""
    names = [
        row.variant.name
        for row in rows
        if config.tuning(row.cfg) != FULL and row.cfg.train.init_weights == "none"
    ]
    if not names:
        return []
    return [
        f"note: {', '.join(names)}: the encoder's random weights stay as they are "
        "(train.tuning, with train.init_weights=none)"
    ]


def of_own_set(rows: Sequence[Row], data: Data) -> list[str]:
    """What to say of a set of the user's own: how configs are made to fit it, and what is odd in
    it."""
    if not data.name:
        return []
    shortest, longest = data.sides
    sides = f"{shortest} to {longest}" if shortest < longest else f"{longest}"
    fitted = (own_data.fitted(row.cfg, data) for row in rows)
    lines = [
        f"images of {sides} px a side are {words}; predictions are in their own pixels"
        for words in dict.fromkeys(own_data.sizing(cfg, data.sides) for cfg in fitted)
    ]
    if not data.has_masks:
        lines.append("no segmentation: boxes only, Mask R-CNN is Faster R-CNN, without mask head")
    return lines + [f"note: {note}" for note in data.notes]


def plan(
    study: Study,
    source: str,
    scale: str,
    rows: list[Row],
    seeds: int | Mapping[str, int],
    data: Data,
    runs_root: Path,
) -> list[DetectionRun]:
    """The runs of a study, row by row of each seed: a comparison is complete after each seed.

    Args:
        seeds: of each row, or of each by its name.
    """
    if isinstance(seeds, int):
        seeds = {row.variant.name: seeds for row in rows}
    return [
        run_of(study, source, scale, row, seed, data, runs_root)
        for seed in range(max(seeds.values()))
        for row in rows
        if seed < seeds[row.variant.name]
    ]


def run_of(
    study: Study, source: str, scale: str, row: Row, seed: int, data: Data, runs_root: Path
) -> DetectionRun:
    """One of them; see `plan`."""
    cfg = own_data.fitted(row.cfg, data)
    cfg.train.seed = seed
    name, home = row.variant.name, study_folder(study.name, data.name)
    words = dict(study=study.name, source=source, home=home, variant=name, scale=scale)
    return DetectionRun.planned(runs_root, name, cfg, data, size=row.size, **words)


def write_manifest(
    study: Study,
    rows: list[Row],
    runs: list[DetectionRun],
    folder: Path,
    command: str,
    sweep: dict[str, Any] | None = None,
    compared: bool = True,
) -> None:
    """Write down what was asked for, for the tables (see `records.load_study`).

    Args:
        sweep: what tables say of one.
        compared: whether the runs are for the table, not those of a sweep that choose.
    """
    write_json(
        folder / MANIFEST,
        dict(
            version=VERSION,
            study=study.name,
            source=_source(study, runs[0]),
            question=study.question,
            scale=runs[0].scale,
            own_set=runs[0].data.name,
            base=rows[0].variant.name,
            variants=[
                dict(
                    name=row.variant.name,
                    size=row.size,
                    words={**row.variant.words, **row.variant.words_of_size.get(row.size, {})},
                    published=row.variant.published,
                )
                for row in rows
            ],
            runs=[
                dict(
                    variant=run.variant,
                    seed=run.seed,
                    folder=os.path.relpath(run.folder, folder),
                )
                for run in (runs if compared else ())
            ],
            command=command,
            **({"sweep": sweep} if sweep else {}),
        ),
    )


def _source(study: Study, run: DetectionRun) -> str:
    """What `studies.find` takes, from any folder."""
    return run.source if run.source == study.name else str(Path(run.source).absolute())


def trainings_first(runs: list[DetectionRun]) -> list[DetectionRun]:
    """In order, but runs that only evaluate what one before them trains come last."""
    marks = [identity.training_fingerprint(run.cfg, run.data.digest) for run in runs]
    repeated = [mark in marks[:i] for i, mark in enumerate(marks)]
    return [
        run for last in (False, True) for run, r in zip(runs, repeated, strict=True) if r == last
    ]


def missing_weights(cfgs: Iterable[DictConfig]) -> list[str]:
    """What to say, if anything, of encoder weights that are not where the configs look for them."""
    missing: dict[str, None] = {}
    for cfg in cfgs:
        try:
            config.init_weights(cfg)
        except UserError as error:
            missing[str(error)] = None
    if not missing:
        return []
    return [
        f"{'; '.join(missing)}; or start at random with OVERRIDES='train.init_weights=none' "
        "(docs/weights.md has all words)"
    ]


def check_weights(cfgs: Iterable[DictConfig]) -> None:
    """Find initial weights that do not fit their encoders before anything trains.

    Raises:
        UserError: the file cannot be read, or does not fit.
    """
    fitting = set()
    for cfg in cfgs:
        path = config.init_weights(cfg)
        pair = (path, str(cfg.model.backbone))
        if path and pair not in fitting:
            _, encoder = encoder_of(config.build_on_meta(cfg.model))
            try:
                fit_encoder(encoder, read_weights(path), strict=True)
            except WeightsError as error:
                raise UserError(str(error)) from error
            fitting.add(pair)
