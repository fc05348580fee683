"""AP of a set without one image, against counting the whole set again."""

import numpy as np
import pytest

from experiments.evaluation import average_precision, matches
from tests.experiments.evaluation.test_matches import random_lvis_set, random_set


def thinned(truth: dict, results: list[dict], seed: int) -> tuple[dict, list[dict]]:
    """Without most objects and detections, so that images lack categories, and one image has the
    only object of a category."""
    random = np.random.default_rng(seed)
    annotations = [a for a in truth["annotations"] if random.random() < 0.3]
    counted = [a for a in annotations if not a.get("ignore") and a["area"] and not a["iscrowd"]]
    rare = counted[0]
    annotations = [a for a in annotations if a["category_id"] != rare["category_id"]]
    results = [r for r in results if random.random() < 0.3]
    return dict(truth, annotations=[*annotations, rare]), results


@pytest.mark.parametrize("rules", ["coco", "lvis"])
@pytest.mark.parametrize("seed", range(6))
def test_without_each_image_is_counting_the_rest_again(seed, rules):
    truth, results = random_set(seed) if rules == "coco" else random_lvis_set(seed)
    found = matches.compute(*thinned(truth, results, seed), rules=rules)
    others = 1 - np.eye(len(found.images), dtype=np.int32)
    left = average_precision.of_categories(found, others)[:, :, 0]
    whole = average_precision.of_categories(found)[:, :1]
    assert (np.isnan(left) & ~np.isnan(whole)).any()  # the only object is left out
    assert ((left == whole) | np.isnan(whole)).any(0).all()  # no image has all categories
    expected = average_precision.figures(found, others)[:, 0]
    assert len(set(expected)) > 3
    assert np.allclose(average_precision.of_images(found), expected, rtol=0, atol=1e-9)


def test_without_the_only_image_there_is_no_ap():
    truth, results = random_set(0)
    image = truth["annotations"][0]["image_id"]
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] == image]
    found = matches.compute(truth, results)
    left = average_precision.of_images(found)
    assert np.isnan(left).tolist() == (found.images == image).tolist()
