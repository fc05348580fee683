"""What a command asks for of a study, and the runs that it comes to."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from omegaconf import DictConfig

from ..data import annotations, catalog, pretraining_images
from ..data.catalog import Data
from ..data.subsets import Shares
from ..errors import UserError
from ..jobs import pretraining_runs, sweep
from ..jobs import runs as planning
from ..jobs.pretraining_runs import PretrainingRun
from ..jobs.runs import DetectionRun, Row
from ..jobs.sweep import Sweep
from ..recipe import checks
from ..recipe.words import check_pretraining_words, parse_overrides, split_overrides
from ..studies import Study, Words
from .seeds import Limits


@dataclass(frozen=True, kw_only=True)
class Request:
    """Rows of a study, in the words of a command."""

    study: Study
    source: str  # what `studies.find` takes
    scale: str
    size: str
    seeds: int | Limits  # of each row; 0: the study's
    sweep: Sweep | None
    variants: str
    overrides: str
    dataset: str
    val: str
    images: str = ""
    runs: Path = Path("runs")
    command: str = ""  # for the manifest
    delta: float | None = None  # AP, of no interest; None: the scale's
    yes: bool = False  # train for days on a CPU if need be

    @cached_property
    def rows(self) -> list[Row]:
        words, _ = self._words
        chosen = [name.strip() for name in self.variants.split(",") if name.strip()]
        return planning.rows(self.study, self.scale, self.size, words, chosen)

    @cached_property
    def swept(self) -> dict[str, dict[float, Row]]:
        """Each row at each of the sweep's factors; empty without one."""
        if not self.sweep:
            return {}
        words, _ = self._words
        return sweep.rows_of(self.sweep, self.study, self.scale, self.rows, words)

    def check_pretraining_words(self) -> None:
        """Raises UserError as of `check_pretraining_words`."""
        check_pretraining_words(self._cfgs, self._words[1], self.images)

    @property
    def shares(self) -> Shares:
        """As of `runs.shares`."""
        return planning.shares(self._cfgs)

    @cached_property
    def folder(self) -> Path:
        own = self.dataset and self.val
        own_set = annotations.set_name(self.dataset, self.val) if own else ""
        return self.runs / self.scale / annotations.study_folder(self.study.name, own_set)

    @cached_property
    def prepared(self) -> tuple[Data, list[PretrainingRun]]:
        """Data, and pre-trainings, which the rows then name."""
        checks.check_writable(self.folder)
        self.check_pretraining_words()
        missing = planning.missing_weights(self._cfgs)
        try:
            data = catalog.prepare(
                self.scale,
                self.dataset or None,
                self.val or None,
                self.study.dataset,
                self.shares,
            )
        except UserError as error:
            raise UserError("; ".join([str(error), *missing])) from error
        # First what encoders start from: it is a part of their runs' identity.
        pretrainings = pretraining_runs.plan_for(
            self._cfgs,
            self.scale,
            lambda: pretraining_images.prepare(self.scale, self.images or None),
            self.runs,
            self._words[1],
        )
        return data, pretrainings

    @cached_property
    def choosing(self) -> dict[str, dict[float, DetectionRun]]:
        """The runs of the sweep that choose, by row and factor."""
        where, (data, _) = (self.study, self.source, self.scale), self.prepared
        return {
            name: {
                f: planning.run_of(*where, r, sweep.SEED, data, self.runs) for f, r in at.items()
            }
            for name, at in self.swept.items()
        }

    def runs_of(self, rows: list[Row], counts: int | Mapping[str, int]) -> list[DetectionRun]:
        """As of `runs.plan`."""
        data, _ = self.prepared
        return planning.plan(self.study, self.source, self.scale, rows, counts, data, self.runs)

    @cached_property
    def _words(self) -> tuple[Words, Words]:
        """Config keys to set, and those of pre-trainings."""
        return split_overrides(parse_overrides(self.overrides))

    @cached_property
    def _cfgs(self) -> list[DictConfig]:
        swept = (at.items() for at in self.swept.values())
        more = [row.cfg for at in swept for factor, row in at if factor != 1]
        return [row.cfg for row in self.rows] + more
