"""A share of a data set, as an annotation file of its own: made by code, nested, the same on every
machine.

Images are in one order, and a share is its beginning: 5 % are a part of 10 %. The order is of the
images' ids alone, by a hash, within strata of like images (`ranked`), which are dealt out evenly:
so each share has the classes and sizes of the whole. Neither the order of the file nor a generator
of random numbers has a part in it.
"""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import UserError
from ..json_files import write_json
from .annotations import Split
from .defects import AnnotationFile

VERSION = 1  # raise it when a change below changes which images are taken, or the file
_SMALL, _LARGE = 32**2, 96**2  # COCO's limits on area, in pixels


@dataclass(frozen=True)
class Shares:
    """How much of a data set is read.

    Args:
        train, val: above 0, up to 1: all.
        seed: another one takes other images.
    """

    train: float = 1.0
    val: float = 1.0
    seed: int = 0


WHOLE = Shares()


def take(split: Split, share: float, seed: int, folder: Path) -> Split:
    """The split that is a share of another; at 1 that one itself.

    The file is made now if it is not there, of the same bytes however the other's entries are
    ordered; safe to call from several processes at once. What is wrong in the other is an error;
    its images are not looked for.

    Args:
        folder: where the file is kept.

    Raises:
        UserError: the annotation file cannot be used, the share is too small to hold all
            categories, or the folder takes no file.
    """
    if share == 1:
        return split
    try:
        with open(split.json_file, "rb") as file:
            whole = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {split.json_file}: {error.strerror}") from error
    mark = f"{share!r}-seed{seed}-{split.kind}{VERSION}-{whole[:12]}"
    path = folder / f"{Path(split.json_file).stem}-{mark}.json"
    if not path.is_file():
        file = AnnotationFile("train", replace(split, image_root=""))
        file.refuse_errors()
        ids = chosen(file.content, share, seed, split.json_file)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            content = _reduced(file.content, ids)
            content["info"] = dict(share=share, seed=seed, of=len(file.images))
            write_json(path, content, indent=None, sort_keys=True)
        except OSError as error:
            raise UserError(
                f"cannot make {path}: {error.strerror}; it is a share of {split.json_file}"
            ) from error
    return replace(split, json_file=str(path.absolute()))


def told(split: Split) -> list[str]:
    """What is to be said of a split that is a share of another; nothing of any other.

    The digest is of the images' ids: the same one says that the same images were taken.
    """
    content = split.read()
    info = content.get("info")
    if not isinstance(info, dict) or not {"share", "seed", "of"} <= info.keys():
        return []
    ids = digest(image["id"] for image in content["images"])
    return [
        f"a share of {info['share']:g} of {info['of']} images, seed {info['seed']}; "
        f"sha256 of its image ids: {ids}"
    ]


def digest(ids: Iterable[int]) -> str:
    """Of image ids, in any order: sha256 of them sorted, in decimal, a line each; 16 digits."""
    lines = "".join(f"{number}\n" for number in sorted(ids))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def chosen(content: dict, share: float, seed: int, name: str) -> set[int]:
    """Ids of the images of a share: as many as `share` says, rounded, the first of each category
    and otherwise the first there are.

    Args:
        content: of an annotation file without errors.
        name: of the file, for the message.

    Raises:
        UserError: too few to hold the first of each category.
    """
    order = ranked(content, seed)
    place = {number: i for i, number in enumerate(order)}
    first: dict[int, int] = {}
    for annotation in content["annotations"]:
        if not annotation.get("iscrowd"):
            image, category = annotation["image_id"], annotation["category_id"]
            first[category] = min(first.get(category, image), image, key=place.get)
    kept, count = set(first.values()), round(share * len(order))
    if count < len(kept):
        least = math.ceil(1000 * len(kept) / len(order)) / 1000
        raise UserError(
            f"a share of {share:g} of {name} is {count} of {len(order)} images and lacks some of "
            f"its {len(first)} categories: take {least:g} or more"
        )
    for number in order:
        if len(kept) == count:
            break
        kept.add(number)
    return kept


def ranked(content: dict, seed: int) -> list[int]:
    """All image ids in the order that shares take them.

    A stratum is the images with the same rarest category and the same commonest size of their
    objects (COCO's small, medium, large); without objects, one of their own. Within it, images are
    ordered by a hash of seed and id; the j-th of n comes at (j + u) / n of the whole, with u in
    0..1 the stratum's own, by a hash too.
    """
    objects = defaultdict(list)
    for annotation in content["annotations"]:
        if not annotation.get("iscrowd"):
            objects[annotation["image_id"]].append(annotation)
    images = Counter(
        category for found in objects.values() for category in {a["category_id"] for a in found}
    )
    strata = defaultdict(list)
    for image in content["images"]:
        found = objects[image["id"]]
        rarest = min((images[a["category_id"]], a["category_id"]) for a in found) if found else ()
        sizes = Counter((a["area"] >= _SMALL) + (a["area"] >= _LARGE) for a in found)
        commonest = max(sizes, key=lambda size: (sizes[size], size)) if found else ""
        strata[f"{rarest[1:]} {commonest}"].append(image["id"])
    keys = {}
    for stratum, ids in strata.items():
        offset = _hash(seed, stratum) / 2**256
        for j, number in enumerate(sorted(ids, key=lambda number: _hash(seed, number))):
            keys[number] = ((j + offset) / len(ids), _hash(seed, number))
    return sorted(keys, key=keys.get)


def _hash(seed: int, what: int | str) -> int:
    """In 0..2^256, the same on every machine."""
    return int(hashlib.sha256(f"{seed}:{what}".encode()).hexdigest(), 16)


def _reduced(content: dict, ids: set[int]) -> dict:
    """What an annotation file holds of some of its images; every list by id."""
    kept = dict(
        images=[image for image in content["images"] if image["id"] in ids],
        annotations=[a for a in content["annotations"] if a["image_id"] in ids],
        categories=content["categories"],
    )
    return {part: sorted(entries, key=lambda e: e["id"]) for part, entries in kept.items()}
