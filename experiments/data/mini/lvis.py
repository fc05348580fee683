"""The mini set in LVIS v1 format: the same images and categories, long-tailed and federated.

As in LVIS (arXiv:1908.03195), each category is verified in some images only. Where it is verified
and present, its objects are annotated; where it is verified and absent, it is among the image's
`neg_category_ids`; elsewhere nothing is said of it, and its objects, if any, are not annotated. How
many images a category is verified in makes the long tail. Crowd regions, which LVIS has not, are
left out, and their category is among the image's `not_exhaustive_category_ids`.

Frequencies have LVIS's own limits, rare to 10 training images and common to 100: scaled from its
100,000 images to 1,200 none would be left, and how few are few for learning a category does not
depend on how many images there are without it. In the validation images all categories are verified
alike, so that the AP of a rare one is not that of a handful of objects.
"""

import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from ...json_files import write_json
from . import detection

VERSION = 1  # raise it when a change below changes the files
# Of 1000 images, those that a category is verified in.
VERIFIED = {
    "train": {"warm square": 800, "warm disk": 14, "cold square": 110, "cold disk": 800},
    "val": dict.fromkeys(detection.CATEGORIES, 500),
}
RARE, COMMON = 10, 100  # training images, at most; LVIS's own


def federate(coco: dict, split: str) -> dict:
    """A COCO-format split of the mini set in LVIS v1 format, but for the categories' counts."""
    objects = defaultdict(list)
    for annotation in coco["annotations"]:
        objects[annotation["image_id"], annotation["category_id"]].append(annotation)
    shares = [VERIFIED[split][category["name"]] for category in coco["categories"]]
    lvis = dict(info=coco["info"], licenses=[], categories=[], images=[], annotations=[])
    for image in coco["images"]:
        rng = np.random.RandomState(1_000_003 * VERSION + 100_000 * (split == "val") + image["id"])
        verified = rng.randint(0, 1000, len(shares)) < shares
        negative, not_exhaustive = [], []
        for category, there in zip(coco["categories"], verified, strict=True):
            found = objects[image["id"], category["id"]]
            singles = [a for a in found if not a["iscrowd"]]
            if there and not found:
                negative.append(category["id"])
            if there and singles and len(singles) < len(found):
                not_exhaustive.append(category["id"])
            for annotation in singles if there else ():
                number = len(lvis["annotations"]) + 1
                lvis["annotations"].append(
                    {k: v for k, v in annotation.items() if k != "iscrowd"} | {"id": number}
                )
        lvis["images"].append(
            dict(
                id=image["id"],
                height=image["height"],
                width=image["width"],
                coco_url=f"{split}/{image['file_name']}",
                neg_category_ids=negative,
                not_exhaustive_category_ids=not_exhaustive,
            )
        )
    return lvis


def categories(coco: dict, train: dict) -> list[dict]:
    """The categories with their counts in the training set, which are also val's, as in LVIS."""
    pairs = {(a["image_id"], a["category_id"]) for a in train["annotations"]}
    images = Counter(category for _, category in pairs)
    instances = Counter(a["category_id"] for a in train["annotations"])
    counted = []
    for category in coco["categories"]:
        count = images[category["id"]]
        counted.append(
            dict(
                id=category["id"],
                name=category["name"],
                cue=category["cue"],
                image_count=count,
                instance_count=instances[category["id"]],
                frequency="r" if count <= RARE else "c" if count <= COMMON else "f",
            )
        )
    return counted


def ensure(datasets: Path) -> Path:
    """The folder with lvis_train.json and lvis_val.json, made now if they are not there.

    Their images are those of `detection.ensure`, by the last two parts of `coco_url`. Safe to call
    from several processes at once: each file appears complete or not at all, with the same bytes.

    Raises:
        OSError: no room or no permission.
    """
    images = detection.ensure(datasets)
    root = datasets / f"{images.name}-lvis-v{VERSION}"
    paths = {split: root / f"lvis_{split}.json" for split in detection.IMAGES}
    if all(path.is_file() for path in paths.values()):
        return root
    root.mkdir(exist_ok=True)
    coco = {
        split: json.loads((images / f"annotations/instances_{split}.json").read_text())
        for split in paths
    }
    lvis = {split: federate(coco[split], split) for split in paths}
    for split, path in paths.items():
        write_json(path, lvis[split] | {"categories": categories(coco[split], lvis["train"])})
    return root
