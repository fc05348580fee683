"""Studies: one question each, as rows of words. One file per study; its `study` is what counts."""

import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError, unknown
from ..scales import SCALES

EPOCHS_100 = 184_375  # iterations on COCO at the paper's batch of 64: configs/common/train.py
Words = dict[str, Any]  # config key -> value, e.g. {"model.backbone.propagation": "conv"}


@dataclass(frozen=True)
class Variant:
    """One row: a tiny diff on the study's base.

    Args:
        name: how the row is called in commands, records and tables.
        words: config keys it sets, over the study's.
        words_of_size: more words for one model size, where the paper's row differs by size.
        published: rows of the paper with the same setting: size -> "table:row" (analysis/paper/),
            several between spaces.
        stands_for: of a row that is none of the paper's: its counterparts there, in the same form.
            No table prints their figures beside it; `make validity` compares them.
        size: model size of this row, in studies that compare models; "": the size that was chosen.
        detector: another than the study's.
        only: model sizes that the row is for; none: any. With a size of its own: among
            whose rows it stands. A row with a learning rate or a length of
            its own says them: what fits one size's batch does not fit another's.
    """

    name: str
    words: Words = field(default_factory=dict)
    words_of_size: dict[str, Words] = field(default_factory=dict)
    published: dict[str, str] = field(default_factory=dict)
    stands_for: dict[str, str] = field(default_factory=dict)
    size: str = ""
    detector: str = ""
    only: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """One question and its rows.

    Args:
        name: as in `make ablation-<name>`.
        question: one line.
        variants: rows; the first is the base that differences are taken to.
        mini, small: rows at that scale, where those of the paper make no sense there; none: the
            same.
        words: config keys that all rows set.
        detector: "mask_rcnn", "cascade_mask_rcnn", "retinanet" or "probe".
        dataset: "coco" or "lvis".
        sizes: default model size of each scale.
        seeds: default number of seeds of each scale.
    """

    name: str
    question: str
    variants: tuple[Variant, ...]
    mini: tuple[Variant, ...] = ()
    small: tuple[Variant, ...] = ()
    words: Words = field(default_factory=dict)
    detector: str = "mask_rcnn"
    dataset: str = "coco"
    sizes: dict[str, str] = field(default_factory=lambda: {s: SCALES[s].size for s in SCALES})
    seeds: dict[str, int] = field(default_factory=lambda: {s: SCALES[s].seeds for s in SCALES})

    def rows(self, scale: str) -> tuple[Variant, ...]:
        """The rows at a scale."""
        return dict(mini=self.mini, small=self.small).get(scale) or self.variants

    def variant(self, name: str, scale: str) -> Variant:
        """The row of that name.

        Raises:
            UserError: there is none.
        """
        for variant in self.rows(scale):
            if variant.name == name:
                return variant
        names = [v.name for v in self.rows(scale)]
        raise unknown("variant", name, names, f" of study {self.name!r} at scale {scale!r}")


def files() -> dict[str, Path]:
    """Study name -> file, for every study there is."""
    folder = Path(__file__).parent
    return {p.stem.replace("_", "-"): p for p in sorted(folder.glob("[!_]*.py"))}


def find(name: str) -> Study:
    """The study of that name, or in that file.

    Args:
        name: "global-vs-conv", or a path ending in .py to a study file of your own.

    Raises:
        UserError: there is none.
    """
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise UserError(
                f"no study file at {path}: give the path of a file that defines `study`"
            )
    elif name in files():
        path = files()[name]
    else:
        raise unknown("study", name, files())
    module_name = f"{__name__}.{path.stem}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            raise UserError(
                f"cannot read the study {path}: {type(error).__name__}: {error}"
            ) from error
    study = getattr(sys.modules[module_name], "study", None)
    if not isinstance(study, Study):
        raise UserError(
            f"{path} defines no `study`: add `study = Study(...)`, see docs/your-own-variant.md"
        )
    return study
