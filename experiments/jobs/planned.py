"""A planned run: what it is, where it lies, and whether it is done."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from omegaconf import DictConfig
from submitit.helpers import Checkpointable

from .. import records
from ..recipe import identity

if TYPE_CHECKING:
    from ..data.catalog import Data
    from ..data.pretraining_images import Images


@dataclass(frozen=True, kw_only=True)
class Run(Checkpointable):
    """What is trained once, planned: a row of a study with a seed, or a pre-training.

    Called in each process of it, it is done, or gone on with, unless its record is there.
    Everything lies in `folder`: log.txt, metrics.json, TensorBoard's files, checkpoints,
    config.yaml, the record. submitit calls it again where it was stopped.
    """

    KIND: ClassVar[type[records.Trained]]  # of its record
    LEAVES: ClassVar[tuple[str, ...]] = ()  # files beside it that others start from
    JOB: ClassVar[str]  # `job.Job` that does it: a finished study is not to wait a second for it

    study: str
    home: str  # folder of its study's files, in that of the scale
    variant: str  # how views and lists of jobs call it
    scale: str
    size: str
    seed: int
    fingerprint: str
    folder: str  # absolute
    cfg: DictConfig
    data: "Data | Images"

    @classmethod
    def planned(
        cls, root: Path, name: str, cfg: DictConfig, data: "Data | Images", **words: Any
    ) -> Self:
        """A run by its config and data, in a folder of `root` that begins with the name. One that
        another study has finished, or begun, is taken from there."""
        mark, home = identity.fingerprint(cfg, data.digest), root / words["scale"]
        here = home / words["home"] / f"{name}-{words['size']}-seed{cfg.train.seed}-{mark}"
        there = sorted(home.glob(f"*/*-{mark}"))
        folder = str((here if here in there or not there else there[0]).absolute())
        known = dict(seed=cfg.train.seed, fingerprint=mark, folder=folder, cfg=cfg, data=data)
        return cls(**known, **words)

    @property
    def done(self) -> bool:
        """Whether its record is there, and what others start from.

        Raises:
            UserError: there is a record, but broken or of another version.
        """
        folder = Path(self.folder)
        if not all((folder / name).is_file() for name in (self.KIND.FILE, *self.LEAVES)):
            return False
        return records.read(folder / self.KIND.FILE, self.KIND).fingerprint == self.fingerprint

    def __call__(self) -> str:
        """Returns the record's path."""
        from . import job

        return job.do(self)


# What is to run before anything else is planned: runs of one may go side by side, those of the next
# start from what they leave.
Stages = list[list[Run]]
