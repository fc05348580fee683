"""Reach: counted as plain Python counts it, and refused, or left out, where it cannot be."""

import copy
import json
import random
from math import isnan

import pytest

from experiments.errors import UserError
from experiments.evaluation import reach

SIDE = 128
INFO = {"cue": {"window": 32}}
CATEGORIES = [
    dict(id=i, name=f"{cue} {shape}", supercategory=shape, cue=cue)
    for i, (cue, shape) in enumerate(
        ((c, s) for c in ("warm", "cold") for s in ("square", "disk")), start=1
    )
]


def some_set(images: int, seed: int) -> tuple[dict, list[dict]]:
    """Objects on a grid of 8 pixels with detections near them: crowds, images in which nothing
    shows the cue, equal scores, detections of two objects and of none."""
    rng = random.Random(seed)
    annotations, results = [], []
    for image in range(1, images + 1):
        shown = rng.choice((0.0, 0.2, 0.5))
        for _ in range(rng.randrange(9)):
            x, y = 8 * rng.randrange(14), 8 * rng.randrange(14)
            box = [x, y, *(min(8 * rng.choice((1, 2, 2, 5)), SIDE - v) for v in (x, y))]
            crowd = rng.random() < 0.1
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image,
                    category_id=rng.randint(1, 4),
                    bbox=box,
                    area=box[2] * box[3],
                    iscrowd=int(crowd),
                    shows_cue=not crowd and rng.random() < shown,
                    cue_distance=rng.randrange(4),
                    cue_by_convs=rng.random() < 0.5,
                )
            )
            if crowd:  # have none
                del annotations[-1]["cue_distance"], annotations[-1]["cue_by_convs"]
            for _ in range(rng.randrange(4)):
                moved = [v + rng.choice((0, 0, 0, 1, 2, 4)) for v in box]
                score, category = rng.choice((0.1, 0.5, 0.5, 0.9)), rng.randint(1, 4)
                results.append(dict(image_id=image, category_id=category, score=score, bbox=moved))
    rng.shuffle(results)
    truth = dict(
        info=INFO,
        images=[dict(id=i, height=SIDE, width=SIDE) for i in range(1, images + 1)],
        categories=CATEGORIES,
        annotations=annotations,
    )
    return truth, results


def iou(a: list, b: list) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / (a[2] * a[3] + b[2] * b[3] - both)


def slowly(truth: dict, results: list[dict]) -> dict[str, list[int]]:
    """The same counts, object by object."""
    cue = {c["id"]: c["cue"] for c in truth["categories"]}
    counts = {}
    for image in truth["images"]:
        objects = [
            a for a in truth["annotations"] if a["image_id"] == image["id"] and not a["iscrowd"]
        ]
        for mine in objects:
            distance = str(mine["cue_distance"])
            if mine["shows_cue"]:
                distance = "self"
            elif distance != "0" and mine["cue_by_convs"]:
                distance = "convs"
            answer = None
            for result in results:
                if result["image_id"] != image["id"]:
                    continue
                overlaps = [iou(result["bbox"], a["bbox"]) for a in objects]
                best = overlaps.index(max(overlaps))
                if (
                    overlaps[best] >= 0.5
                    and objects[best] is mine
                    and (answer is None or result["score"] > answer["score"])
                ):
                    answer = result
            count = counts.setdefault(distance, [0, 0, 0])
            count[0] += 1
            count[1] += answer is not None
            count[2] += (
                answer is not None and cue[answer["category_id"]] == cue[mine["category_id"]]
            )
    return counts


@pytest.mark.parametrize("seed", range(5))
def test_counts_are_those_of_plain_python(seed):
    truth, results = some_set(images=400, seed=seed)
    before = copy.deepcopy((truth, results))
    counts = reach.compute(truth, results)
    assert counts == slowly(truth, results)
    assert list(counts) == ["self", "0", "convs", "1", "2", "3"]
    assert all(annotated > found > right > 0 for annotated, found, right in counts.values())
    assert (truth, results) == before


def one_image(*objects: tuple[list, int | None], **words) -> dict:
    """Warm squares with their boxes and distances; None: it shows the cue."""
    annotations = [
        dict(
            id=i,
            image_id=7,
            category_id=1,
            bbox=box,
            iscrowd=0,
            shows_cue=distance is None,
            cue_distance=distance or 0,
            cue_by_convs=not distance,
        )
        for i, (box, distance) in enumerate(objects, start=1)
    ]
    truth = dict(images=[dict(id=7, height=SIDE, width=SIDE)], annotations=annotations)
    return truth | dict(info=INFO, categories=CATEGORIES) | words


def detection(category: int, box: list, score: float = 0.5) -> dict:
    return dict(image_id=7, category_id=category, bbox=box, score=score)


SHOWING = ([0, 0, 32, 32], None)


@pytest.mark.parametrize(
    ("distance", "by_convs", "name"),
    [
        (0, True, "0"),
        (1, True, "convs"),
        (1, False, "1"),
        (2, True, "convs"),
        (2, False, "2"),
        (3, False, "3"),
    ],
)
def test_what_convs_read_is_apart(distance, by_convs, name):
    truth = one_image(SHOWING, ([40, 0, 20, 20], distance))
    truth["annotations"][1]["cue_by_convs"] = by_convs
    counts = reach.compute(truth, [])
    assert counts.pop("self") == [1, 0, 0]
    assert {name: count for name, count in counts.items() if count[0]} == {name: [1, 0, 0]}


def test_the_answer_is_the_highest_score_whatever_the_shape():
    box, far = [64, 0, 20, 20], [70, 0, 20, 20]
    truth = one_image(SHOWING, (box, 2))
    warm, cold = detection(2, box, 0.6), detection(3, box, 0.6)
    for results, right in (
        ([warm], 1),  # a disk, but of its colour
        ([cold], 0),
        ([warm, cold], 1),  # of equal ones the first
        ([cold, warm], 0),
        ([warm, cold | {"score": 0.7}], 0),
        ([warm, detection(3, [1, 1, 5, 5], 0.9)], 1),  # finds nothing
    ):
        assert reach.compute(truth, results)["2"] == [1, 1, right]
    assert reach.compute(truth, [detection(1, [x + 12 for x in far])])["2"] == [1, 0, 0]


def test_a_detection_answers_for_one_object_only():
    """The two overlap; it is on both, but more on the first."""
    boxes = [64, 0, 20, 20], [68, 0, 20, 20]
    truth = one_image(SHOWING, *((box, 2) for box in boxes))
    assert iou(*boxes) > 0.5
    assert reach.compute(truth, [detection(1, boxes[0])])["2"] == [2, 1, 1]


def test_crowds_are_left_out_and_images_without_objects_have_none():
    truth = one_image(SHOWING, ([64, 0, 20, 20], 2), ([70, 0, 20, 20], 2))
    truth["annotations"][1] |= dict(iscrowd=1)
    truth["images"].append(dict(id=8))
    results = [detection(1, [64, 0, 20, 20], 0.9), detection(1, [0, 0, 9, 9]) | {"image_id": 8}]
    counts = reach.compute(truth, results)
    assert {name: count for name, count in counts.items() if count[0]} == {
        "self": [1, 0, 0],
        "2": [1, 1, 1],
    }


def without_words(part: str, key: str) -> dict:
    truth = copy.deepcopy(one_image(SHOWING))
    del truth[part][0][key]
    return truth


@pytest.mark.parametrize(
    "truth",
    [
        one_image(SHOWING, info={}),
        one_image(SHOWING, info="COCO 2017"),
        one_image(SHOWING, info=[]),
        {k: v for k, v in one_image(SHOWING).items() if k != "info"},
        {k: v for k, v in one_image(SHOWING).items() if k != "annotations"},
        without_words("categories", "cue"),
        *(
            without_words("annotations", key)
            for key in ("shows_cue", "cue_distance", "cue_by_convs")
        ),
    ],
)
def test_other_data_have_no_reach(truth):
    assert not reach.has_cue(truth)
    assert reach.compute(truth, []) is None


def test_data_without_objects_have_no_reach():
    assert reach.compute(one_image(), []) is None


def test_lvis_annotations_have_no_crowds():
    truth = one_image(SHOWING, ([64, 0, 20, 20], 2))
    for annotation in truth["annotations"]:
        del annotation["iscrowd"]
    assert reach.compute(truth, [detection(1, [64, 0, 20, 20])])["2"] == [1, 1, 1]


def test_files_are_read_and_refused_in_a_line(tmp_path):
    truth, predictions = tmp_path / "truth.json", tmp_path / "found.json"
    content, results = some_set(images=5, seed=0)
    truth.write_text(json.dumps(content))
    predictions.write_text(json.dumps(results))
    assert reach.of_files(truth, predictions) == reach.compute(content, results)
    for change, message in (
        ({"image_id": 99}, r"found.json: entry 1 .* image 99 "),
        ({"category_id": 99}, "category 99"),
        ({"bbox": None}, "entry 1 .* has no 'bbox'"),
    ):
        wrong = {k: v for k, v in (results[1] | change).items() if v is not None}
        predictions.write_text(json.dumps([results[0], wrong]))
        with pytest.raises(UserError, match=message):
            reach.of_files(truth, predictions)
    with pytest.raises(UserError, match=r"cannot read .*nowhere"):
        reach.of_files(tmp_path / "nowhere.json", predictions)


def test_a_run_learned_the_cue_if_it_is_right_where_it_is_shown():
    assert reach.learned({"self": [200, 100, 98], "1": [9, 9, 0]})
    assert not reach.learned({"self": [200, 100, 97], "1": [9, 9, 9]})
    assert not reach.learned({"self": [200, 0, 0]})
    assert reach.share({"self": [9, 4, 3]}, "self") == 0.75
    assert isnan(reach.share({"self": [9, 4, 3]}, "3"))
