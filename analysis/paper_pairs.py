"""Pairs of rows that the paper separates, and the rows at a scale that stand for them."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

from experiments import studies
from experiments.recipe import identity, resolved
from experiments.scales import SCALES
from experiments.studies import Variant

from .paper import published
from .results import PAPER_SIZES

SEPARATED = 0.5  # box AP; the paper's differences from here on count
TABLES = ("T1", *(f"T{n}{part}" for part in "abcd" for n in (2, 8)), "T4")


class Row(NamedTuple):
    """A row at a scale, with the rows of the paper that it stands for, e.g. "T8a:1"."""

    study: str
    name: str
    setting: str  # its resolved config: rows with the same one share their runs
    printed: tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """Two rows at a scale, the one that the paper has ahead first.

    Attributes:
        study, names: the first study that has both, and what it calls them.
        settings: of `Row`, of both.
        printed: the rows of the paper that they stand for, each two of one table and model.
    """

    study: str
    names: tuple[str, str]
    settings: tuple[str, str]
    printed: tuple[tuple[str, str], ...]

    @property
    def paper(self) -> dict[str, float]:
        """The paper's difference in box AP, first minus second, by model size."""
        found = {}
        for one, other in self.printed:
            size = published().at[one, "model"].lower()
            aps = published().loc[[one, other], "ap_box"]
            found[size] = round(float(aps.iloc[0] - aps.iloc[1]), 1)  # as it is printed
        return {size: found[size] for size in PAPER_SIZES if size in found}

    @property
    def separating(self) -> list[float]:
        """Those of the paper's differences that count."""
        return [d for d in self.paper.values() if abs(d) >= SEPARATED]

    @property
    def tables(self) -> str:
        """The tables it is printed in: "2acd, 8acd"."""
        names = sorted({one.split(":")[0].removeprefix("T") for one, _ in self.printed})
        parts = itertools.groupby(names, key=lambda name: name[0])
        return ", ".join(n + "".join(name[1:] for name in found) for n, found in parts)

    def swapped(self) -> "Pair":
        """The same pair, the other row first."""
        return Pair(
            self.study,
            self.names[::-1],
            self.settings[::-1],
            tuple(two[::-1] for two in self.printed),
        )


@cache
def rows(scale: str = "mini", size: str = "") -> tuple[Row, ...]:
    """All rows at a scale that stand for some of `TABLES`, in the tables' order.

    Args:
        size: of the model; "": the scale's default.
    """
    found, size = [], size or SCALES[scale].size
    for name in studies.files():
        study = studies.find(name)
        for variant in study.rows(scale):
            if variant.only and size not in variant.only:
                continue
            if printed := _printed(variant, size):
                cfg = resolved.resolve(study, variant, scale, size, {})
                setting = json.dumps(identity.plain_config(cfg), sort_keys=True)
                found.append(Row(name, variant.name, setting, printed))
    first = {row.study: TABLES.index(_table(row.printed[0])) for row in reversed(found)}
    return tuple(sorted(found, key=lambda row: first[row.study]))


def _printed(variant: Variant, size: str) -> tuple[str, ...]:
    words = variant.words_of_size.get(size, {})
    where = [
        row
        for papers, rows in (variant.stands_for or variant.published).items()
        # A row that the paper has with other words for this size has no counterpart.
        if variant.stands_for or variant.words_of_size.get(papers, {}) == words
        for row in rows.split()
    ]
    return tuple(row for row in where if _table(row) in TABLES)


def _table(printed: str) -> str:
    return printed.split(":")[0]


def _table_and_model(printed: str) -> tuple[str, str]:
    return _table(printed), published().at[printed, "model"]


def pairs(found: Sequence[Row]) -> list[Pair]:
    """The pairs of `found` that the paper separates, each once."""
    kept: dict[frozenset[str], Pair] = {}
    for one, other in itertools.combinations(found, 2):
        if one.study != other.study:
            continue
        printed = itertools.product(one.printed, other.printed)
        printed = tuple((a, b) for a, b in printed if _table_and_model(a) == _table_and_model(b))
        pair = Pair(one.study, (one.name, other.name), (one.setting, other.setting), printed)
        known = kept.setdefault(frozenset(pair.settings), pair)
        if known is not pair:
            more = pair if pair.settings == known.settings else pair.swapped()
            kept[frozenset(pair.settings)] = replace(known, printed=known.printed + more.printed)
    separated = [pair for pair in kept.values() if pair.separating]
    return [pair if pair.separating[0] > 0 else pair.swapped() for pair in separated]
