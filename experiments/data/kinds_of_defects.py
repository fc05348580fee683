"""What may be wrong with an annotation file, kind by kind, and what that does.

An error stops every run before it trains; a note does not. What training leaves out is detectron2's
doing (public files data/build.py, data/dataset_mapper.py, data/detection_utils.py).
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

_NO_START = (("error", "no run starts"),) * 2
_STOPS = (("error", "a run stops there"),) * 2
_LEFT_OUT = ("note", "left out of training")
_AS_IT_IS = ("note", "evaluated as it is")
_UNFINDABLE = ("note", "an object that no detection matches")
_OF_MASK = "detectors with masks learn the mask's box"
# What each kind of defect does: severity and consequence in training, and in evaluation.
KINDS = {
    "incomplete entry": _NO_START,
    "duplicate image id": _NO_START,
    "duplicate annotation id": _NO_START,
    "duplicate category id": _NO_START,
    "unknown image": _NO_START,
    "unknown category": _NO_START,
    "different categories": _NO_START,
    "against LVIS's rules": _NO_START,
    "marked ignore": _NO_START,
    "no objects": _NO_START,
    "some without segmentation": _NO_START,
    "missing image": _NO_START,
    "unreadable image": _STOPS,
    "wrong size": _STOPS,
    "file listed twice": _NO_START,
    "in train and val": (("error", "AP is measured on what was trained on"),) * 2,
    "broken box": _NO_START,
    "broken segmentation": _NO_START,
    "box of negative size": _NO_START,
    "box by its corners": _NO_START,
    "box outside the image": _NO_START,
    "box far from its mask": (("note", f"{_OF_MASK}, others this"), _AS_IT_IS),
    "box without area": (("note", f"{_OF_MASK}, others leave it out"), _UNFINDABLE),
    "box partly outside": (("note", "cut at the crop, not at the image"), _AS_IT_IS),
    "box differs from its mask": (("note", f"{_OF_MASK}, others this"), _AS_IT_IS),
    "empty mask": (("note", "left out of training by detectors with masks"), _UNFINDABLE),
    "area not above 0": (("note", "not used in training"), ("note", "not scored: LVIS's rule")),
    "whole number as a float": (("note", "taken as the whole number"),) * 2,
    "no iscrowd": (("note", "taken as 0"),) * 2,
    "no area": (("note", "taken from its mask, or else its box"),) * 2,
    "polygon without a list": (("note", "taken as one polygon"),) * 2,
    "empty segmentation": (("note", "taken as none"),) * 2,
    "polygon without area": (("note", "left out"),) * 2,
    "annotation id 0": (
        ("note", "like any other"),
        ("note", "counted like any other; pycocotools takes a match to it for none"),
    ),
    "same image twice": (("note", "counts each time"),) * 2,
    "image without annotations": (_LEFT_OUT, _AS_IT_IS),
    "image with crowds only": (_LEFT_OUT, _AS_IT_IS),
    "category without objects": (("note", "cannot be learned"), ("note", "not in the mean of AP")),
}


@dataclass(frozen=True)
class Defect:
    """One thing that is wrong with a split."""

    split: str  # "train" or "val"
    kind: str  # of KINDS
    what: str
    image_id: int | None = None
    file: str = ""  # of the image, in the split's folder
    annotation_id: int | None = None
    sort: str = ""  # of defects of a kind that are the same but for the entry

    @property
    def severity(self) -> str:
        """ "error": training or evaluating would stop or be wrong; "note": it would not."""
        return KINDS[self.kind][self.split == "val"][0]

    @property
    def consequence(self) -> str:
        return KINDS[self.kind][self.split == "val"][1]

    @property
    def where(self) -> str:
        """Image and annotation, as far as it is of one."""
        image = "" if self.image_id is None else f"image {self.image_id} ({self.file})"
        number = "" if self.annotation_id is None else f"annotation {self.annotation_id}"
        return ", ".join(filter(None, (image, number)))

    def __str__(self) -> str:
        return f"{self.split} {self.where}".rstrip() + f": {self.what}"


def grouped(defects: Iterable[Defect]) -> dict[tuple[str, str, str], list[Defect]]:
    """By severity, kind with sort, and split: those that one cause may have."""
    groups: dict[tuple[str, str, str], list[Defect]] = defaultdict(list)
    for defect in defects:
        kind = f"{defect.kind} ({defect.sort})" if defect.sort else defect.kind
        groups[defect.severity, kind, defect.split].append(defect)
    return groups
