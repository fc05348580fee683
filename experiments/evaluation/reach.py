"""Reach: how well a detector uses a cue by the distance that it has to travel, in windows.

In data such as the mini set, an image has one cue (its colour), an object's category is its shape
together with that cue, and only some objects show it. The annotation file says which, so that reach
can be computed from it and a file of detections, by anyone (docs/analysis.md):

- `info["cue"]["window"]`: side of an attention window, pixels;
- `cue` of every category, a word;
- of every annotation but crowd regions, which are not counted, `shows_cue`; `cue_distance`, windows
  from the object to the nearest that shows the cue; `cue_by_convs`, whether convs of stem, neck and
  heads read the cue for it where windows exchange nothing.
"""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from pycocotools import mask as masks

from ..data import annotations
from ..errors import UserError
from .detections import read_results

SHOWN = "self"  # the distance of objects that show the cue
BY_CONVS = "convs"
FOUND = 0.5  # box IoU
LEARNED = 0.98  # share right of the objects that show the cue; below, a run did not learn it

# Distance -> objects that are annotated, of these found, of these of the right cue. The distances
# are `SHOWN`; "0", in a window that shows it; `BY_CONVS`, in another, and so near that convs read
# the cue; beyond their reach "1", in a window next to one that shows it, "2", ...
Reach = dict[str, list[int]]
_OF_OBJECTS = {"shows_cue", "cue_distance", "cue_by_convs"}  # keys of annotations


def has_cue(truth: dict) -> bool:
    """Whether an annotation file's content says which objects show a cue."""
    try:
        return (
            truth["info"]["cue"]["window"] > 0
            and all("cue" in category for category in truth["categories"])
            and all(a.keys() >= _OF_OBJECTS for a in truth["annotations"] if not a.get("iscrowd"))
        )
    except (KeyError, TypeError, AttributeError):  # users' files may have anything there
        return False


def compute(truth: dict, results: Iterable[dict]) -> Reach | None:
    """Reach of detections; None if the truth has no cue, or no object.

    A detection is assigned to the object that it overlaps most, if that is `FOUND` or more; an
    object's answer is its detection of the highest score, the first of equal ones. It is right if
    its category has the cue of the object's, whatever the shape.

    Args:
        truth: content of an annotation file in COCO's or LVIS's format.
        results: detections with boxes in COCO's result format.

    Raises:
        UserError: a detection is of no image or category of the truth, or lacks a key.
    """
    if not has_cue(truth):
        return None
    cue = {c["id"]: c["cue"] for c in truth["categories"]}
    objects: dict[int, list[dict]] = {image["id"]: [] for image in truth["images"]}
    for annotation in truth["annotations"]:
        if not annotation.get("iscrowd") and annotation["image_id"] in objects:
            objects[annotation["image_id"]].append(annotation)
    detections = defaultdict(list)
    for i, found in enumerate(results):
        if missing := {"image_id", "category_id", "score", "bbox"} - found.keys():
            raise UserError(f"entry {i} of the predictions has no {min(missing)!r}")
        if found["image_id"] not in objects or found["category_id"] not in cue:
            raise UserError(
                f"entry {i} of the predictions is of image {found['image_id']!r} and category "
                f"{found['category_id']!r}: its ground truth has not both"
            )
        detections[found["image_id"]].append(found)
    parts = []
    for image, mine in objects.items():
        answers = _answers(detections[image], mine)
        parts += [
            (
                _distance(a),
                answer is not None,
                answer is not None and cue[answer["category_id"]] == cue[a["category_id"]],
            )
            for answer, a in zip(answers, mine, strict=True)
        ]
    if not parts:
        return None
    distances, found, right = (np.array(part) for part in zip(*parts, strict=True))
    farthest = max((int(d) for d in distances if d.isdigit()), default=0)
    names = [SHOWN, "0", BY_CONVS, *(str(i) for i in range(1, farthest + 1))]
    return {
        name: [int((of := distances == name).sum()), int(found[of].sum()), int(right[of].sum())]
        for name in names
    }


def _distance(annotation: dict) -> str:
    if annotation["shows_cue"]:
        return SHOWN
    if annotation["cue_distance"] and annotation["cue_by_convs"]:
        return BY_CONVS
    return str(annotation["cue_distance"])


def _answers(detections: list[dict], objects: list[dict]) -> list[dict | None]:
    """Of each object the detection that answers for it."""
    answers: list[dict | None] = [None] * len(objects)
    if not detections or not objects:
        return answers
    sides = [np.array([s["bbox"] for s in side], float) for side in (detections, objects)]
    overlaps = masks.iou(*sides, [False] * len(objects))
    best = overlaps.argmax(1)
    for i in sorted(range(len(detections)), key=lambda i: -detections[i]["score"]):
        if overlaps[i, best[i]] >= FOUND and answers[best[i]] is None:
            answers[best[i]] = detections[i]
    return answers


def of_files(truth: Path, predictions: Path) -> Reach | None:
    """Reach of a file of detections, as of `compute`.

    Raises:
        UserError: a file cannot be read, too.
    """
    content = annotations.read(truth)
    if not has_cue(content):
        return None
    try:
        return compute(content, read_results(predictions))
    except UserError as error:
        raise UserError(f"{predictions}: {error}") from error


def share(reach: Reach, distance: str) -> float:
    """Of the found objects at a distance, the share whose cue is right; NaN without any."""
    _, found, right = reach.get(distance, (0, 0, 0))
    return right / found if found else float("nan")


def learned(reach: Reach) -> bool:
    """Whether the cue is right where it is plain to see: if not, reach and AP of the run say
    nothing about propagation."""
    return share(reach, SHOWN) >= LEARNED
