"""Looks at a study's verdicts: how many seeds each is taken at, what it may err, and what it said.

Whoever adds seeds until a table says something gives chance as many tries as there were tables. So
the 5 % that all of a study's tables may err together are spent over its looks, whatever it is that
makes somebody look again: `error` (alpha spending, Lan and DeMets, Discrete Sequential Boundaries
for Clinical Trials, 1983, by the union bound, which holds however looks depend on each other). A
table that nobody adds seeds to pays little for it.
"""

from pathlib import Path
from typing import Any

from ..json_files import write_json
from . import VERSION, read_json

FILE = "looks.json"  # beside the manifest
FIRST = 3  # seeds of the first look: fewer tell nothing of a row's spread
MOST = 8  # looks that are planned for
_AT_FIRST = 0.04
_ALL = 0.05
_LATER = (_ALL - _AT_FIRST) / MOST


def error(look: int) -> float:
    """What intervals and verdicts of a row's first, second, ... look may err; all together 5 %."""
    if look == 1:
        return _AT_FIRST
    beyond = look - MOST
    return _LATER if beyond <= 0 else _LATER / (beyond * (beyond + 1))


def following(seeds: int) -> int:
    """Of how many seeds the next look is: 3, 4, 5, 6, 8, 10, 13, 17, ..."""
    return seeds + max(1, seeds // 3)


def seeds_of(looks: int = MOST) -> list[int]:
    """Of how many seeds the looks are."""
    found = [FIRST]
    while len(found) < looks:
        found.append(following(found[-1]))
    return found


def read(study: Path) -> list[dict[str, Any]]:
    """The looks at the study in a folder, the first one first.

    Each has `date` (ISO 8601, UTC), `delta` (AP, of no interest), `runs` (row -> the folders of its
    runs that counted, the base's too) and `said`: of each row that had new runs, which `look` it
    was of that row, its `error`, its `seeds`, box AP's `diff`, `low`, `high`, and the `verdict`.

    Raises:
        UserError: the file is broken or of another version.
    """
    path = Path(study) / FILE
    return read_json(path)["looks"] if path.is_file() else []


def write(study: Path, looks: list[dict[str, Any]]) -> None:
    """Keep them."""
    write_json(Path(study) / FILE, dict(version=VERSION, looks=looks))
