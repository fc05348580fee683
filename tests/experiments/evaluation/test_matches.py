"""Matches are pycocotools' and lvis's, on sets that ask for all of their rules; wrong input is told
apart."""

import contextlib
import copy
import io
import itertools
import json
import os

import numpy as np
import pytest
from lvis import LVIS, LVISEval, LVISResults
from pycocotools import mask as masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from experiments import records
from experiments.errors import UserError
from experiments.evaluation import average_precision, matches
from experiments.evaluation.detections import DETECTIONS, LVIS_DETECTIONS
from tests.conftest import ROOT
from tests.experiments.records.test_records import make

IOU_TYPE = {"box": "bbox", "mask": "segm"}
SIDE = 160
PUBLISHED = ROOT.parent / "shared" / "data" / "coco_val2014_reference"


def pycocotools(truth: dict, results: list[dict], kind: str) -> COCOeval:
    """As detectron2 runs it: masks without their boxes."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        left_out = "bbox" if kind == "mask" else "segmentation"
        results = [{k: v for k, v in r.items() if k != left_out} for r in copy.deepcopy(results)]
        evaluation = COCOeval(coco, coco.loadRes(results), IOU_TYPE[kind])
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


class InMemory(LVIS):
    """Of what a file holds."""

    def _load_json(self, content: dict) -> dict:
        return copy.deepcopy(content)


def lvis_package(truth: dict, results: list[dict], kind: str) -> LVISEval:
    """As detectron2 runs it: masks without their boxes."""
    lvis = InMemory(truth)
    left_out = "bbox" if kind == "mask" else "segmentation"
    results = [{k: v for k, v in r.items() if k != left_out} for r in copy.deepcopy(results)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "float", float, raising=False)  # numpy dropped it, lvis needs it
        evaluation = LVISEval(lvis, LVISResults(lvis, results), IOU_TYPE[kind])
        evaluation.run()
    return evaluation


def rectangle(box: list[float]) -> dict:
    canvas = np.zeros((SIDE, SIDE), np.uint8, order="F")
    x, y, w, h = (round(v) for v in box)
    canvas[max(y, 0) : max(y + h, 0), max(x, 0) : max(x + w, 0)] = 1
    canvas[:, 1::7] = 0  # masks with gaps: less area than their box
    encoded = masks.encode(canvas)
    return {**encoded, "counts": encoded["counts"].decode()}


def random_set(seed: int, images: int = 12, categories: int = 3) -> tuple[dict, list[dict]]:
    """Crowds, objects on each other and of all sizes, equal scores, equal overlaps, more than 100
    detections of a category in an image, images and a category without objects or detections, ids
    with gaps and not in order, objects of images that are not listed. No id is 0: a match to it is
    none to the references, and counts here."""
    random = np.random.default_rng(seed)
    image_ids = (3 * random.permutation(images) + 7).tolist()
    category_ids = (2 * random.permutation(categories + 2) + 1).tolist()
    annotations, results = [], []
    for image in image_ids[:-2]:
        for category in category_ids[:-2]:
            crowded = image == image_ids[0] and category == category_ids[0]
            size = np.exp(random.normal(3.5, 1, (random.integers(5) + 8 * crowded, 2)))
            corner = random.uniform(0, SIDE / 2, size.shape)
            boxes = np.round(np.concatenate([corner, size.clip(2, SIDE)], 1), 1)
            for box in boxes.tolist():
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=image,
                        category_id=category,
                        bbox=box,
                        area=box[2] * box[3] * random.choice([0.5, 1]),
                        iscrowd=int(random.random() < 0.15),
                        segmentation=rectangle(box),
                    )
                )
            for _ in range(130 if crowded else random.integers(12)):
                if len(boxes) and random.random() < 0.8:
                    near = boxes[random.integers(len(boxes))].copy()
                    near += np.round(random.normal(0, 0.08, 4) * near[[2, 3, 2, 3]], 1)
                    near[2:] = near[2:].clip(1)
                else:
                    near = random.uniform(2, SIDE / 2, 4).round(1)
                results.append(detection(image, category, near.tolist(), random))
    for image, category in ((image_ids[-2], category_ids[0]), (image_ids[0], category_ids[-2])):
        results.append(detection(image, category, [5.0, 5.0, 9.0, 9.0], random))
    annotations.append(dict(annotations[0], id=10**6, image_id=10**6))
    order = random.permutation(len(annotations))
    truth = dict(
        images=[dict(id=i, height=SIDE, width=SIDE) for i in image_ids],
        categories=[dict(id=c, name=str(c)) for c in category_ids],
        annotations=[annotations[i] for i in order],
    )
    return truth, results


def detection(image: int, category: int, box: list[float], random) -> dict:
    score = round(float(random.beta(2, 2)), 2)
    return dict(
        image_id=image, category_id=category, bbox=box, score=score, segmentation=rectangle(box)
    )


def random_lvis_set(seed: int) -> tuple[dict, list[dict]]:
    """As `random_set`; objects that are ignored or have no area, detections without area, more than
    300 in an image, categories of which nothing, or not all, is known in an image."""
    random = np.random.default_rng(100 + seed)
    truth, results = random_set(seed, categories=4)
    categories = [category["id"] for category in truth["categories"]]
    for image in truth["images"]:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            image[key] = [c for c in categories if random.random() < 0.3]
    frequencies = random.permutation([*"rrccff"])
    for category, frequency in zip(truth["categories"], frequencies, strict=True):
        category["frequency"] = str(frequency)
    for annotation in truth["annotations"]:
        annotation["area"] *= random.random() > 0.1
        if random.random() < 0.3:
            annotation["ignore"] = int(random.random() < 0.5)
    for result in [r for r in results if r["image_id"] == results[0]["image_id"]] * 3:
        box = [round(v * random.uniform(0.9, 1.1), 2) for v in result["bbox"]]
        results.append(detection(result["image_id"], result["category_id"], box, random))
    for result in results[::20]:
        result.update(bbox=[*result["bbox"][:2], 0.0, 5.0], segmentation=rectangle([0, 0, 0, 0]))
    return truth, results


def check_matches(ours: matches.Matches, of_images: list[dict | None], names: list[str]) -> None:
    """That they are what the reference found of each category, range of area and image; it has its
    names for objects that are ignored, scores, matches, and detections that are ignored."""
    ignored_object, score, match, ignored = names
    bits = np.arange(10)[:, None]
    images = len(ours.images)
    for k in range(len(ours.categories)):
        here = slice(*ours.start[k : k + 2])
        for a in range(4):
            first = (4 * k + a) * images
            of_image = [e for e in of_images[first : first + images] if e]
            count = sum(np.count_nonzero(e[ignored_object] == 0) for e in of_image)
            assert ours.objects[:, k, a].sum() == count
            if not of_image:
                assert here.start == here.stop
                continue
            order = np.argsort(-np.concatenate([e[score] for e in of_image]), kind="stable")
            image = np.concatenate([[e["image_id"]] * len(e[score]) for e in of_image])
            assert (ours.images[ours.image[here]] == image[order]).all()
            for mine, key in ((ours.matched, match), (ours.ignored, ignored)):
                their = np.concatenate([e[key] for e in of_image], axis=1)[:, order]
                assert ((mine[a, here] >> bits & 1) == (their != 0)).all()


@pytest.mark.parametrize("kind", matches.KINDS)
@pytest.mark.parametrize("seed", range(8))
def test_lvis_matches_are_lvis(seed, kind):
    truth, results = random_lvis_set(seed)
    before = copy.deepcopy([truth, results])
    theirs = lvis_package(truth, results, kind)
    ours = matches.compute(truth, results, kind, rules="lvis")
    assert [truth, results] == before
    names = ["gt_ignore", "dt_scores", "dt_matches", "dt_ignore"]
    check_matches(ours, theirs.eval_imgs, names)
    figures = average_precision.lvis_figures(ours)
    assert tuple(figures) == records.LVIS_FIGURES
    expected = {f: None if v == -1 else 100 * v for f, v in theirs.results.items() if f in figures}
    assert figures == pytest.approx(expected, abs=1e-9)


def test_the_random_lvis_sets_ask_for_every_rule():
    """What the test above is about does occur in its sets: each rule changes what is found."""
    truth, results = random_lvis_set(0)

    def found(**changes) -> dict:
        changed = copy.deepcopy(truth)
        for part in ("images", "annotations"):
            for entry in changed[part]:
                entry.update({k: v for k, v in changes.items() if k in entry})
        ours = matches.compute(changed, results, rules="lvis")
        return average_precision.lvis_figures(ours)

    everything = [category["id"] for category in truth["categories"]]
    ways = (
        dict(neg_category_ids=[]),
        dict(neg_category_ids=everything),
        dict(not_exhaustive_category_ids=[]),
        dict(ignore=0),
    )
    assert all(found(**changes) != found() for changes in ways)
    assert found(iscrowd=0) == found()
    in_image = [r for r in results if r["image_id"] == results[0]["image_id"]]
    assert len(in_image) > LVIS_DETECTIONS
    limit = sorted((r["score"] for r in in_image), reverse=True)[299:301]
    assert limit[0] == limit[1]  # the order in the file decides
    ours = matches.compute(truth, results, rules="lvis")
    assert ours.rank.max() > DETECTIONS
    assert sorted(set(ours.frequency)) == ["c", "f", "r"]


@pytest.mark.parametrize("kind", matches.KINDS)
@pytest.mark.parametrize("seed", range(8))
def test_matches_are_pycocotools(seed, kind):
    truth, results = random_set(seed)
    before = copy.deepcopy([truth, results])
    theirs = pycocotools(truth, results, kind)
    ours = matches.compute(truth, results, kind)
    assert [truth, results] == before
    check_matches(ours, theirs.evalImgs, ["gtIgnore", "dtScores", "dtMatches", "dtIgnore"])
    figures = average_precision.coco_figures(ours)
    assert list(figures) == list(records.COCO_FIGURES)
    assert list(figures.values()) == pytest.approx((100 * theirs.stats).tolist(), abs=1e-9)


@pytest.mark.parametrize("rules", ["coco", "lvis"])
@pytest.mark.parametrize("seed", range(3))
def test_in_parts_they_are_the_same(seed, rules, tmp_path):
    """Of whole images, in any order of the images; and both kinds at once."""
    truth, results = (random_set if rules == "coco" else random_lvis_set)(seed)
    images = [image["id"] for image in truth["images"]]
    np.random.default_rng(seed).shuffle(images)
    parts = [[r for r in results if r["image_id"] in some] for some in np.array_split(images, 4)]
    predictions, file = tmp_path / "results.json", tmp_path / "truth.json"
    predictions.write_text(json.dumps([*itertools.chain(*parts)]))
    file.write_text(json.dumps(truth))
    found = matches.of_parts(file, predictions, matches.KINDS, rules, lambda: parts)
    for kind in matches.KINDS:
        expected = vars(matches.compute(truth, [*itertools.chain(*parts)], kind, rules=rules))
        for name, array in vars(found[kind]).items():
            assert array.dtype == expected[name].dtype
            assert np.array_equal(array, expected[name]), name
        kept = matches.of_file(file, predictions, kind, rules)
        assert np.array_equal(kept.matched, found[kind].matched)
    parts[2][1] = parts[2][1] | {"score": 2.0}
    predictions.write_text(json.dumps([*itertools.chain(*parts)]))
    entry = len(parts[0]) + len(parts[1]) + 1
    with pytest.raises(UserError, match=f"has score 2.0 at entry {entry}: it must be in 0..1"):
        matches.of_parts(file, predictions, matches.KINDS, rules, lambda: parts)


def test_the_random_sets_ask_for_every_rule():
    """What the test above is about does occur in its sets."""
    truth, results = random_set(0)
    scores = [(r["image_id"], r["category_id"], r["score"]) for r in results]
    assert len(set(scores)) < len(scores)
    found = matches.compute(truth, results)
    assert found.rank.max() == 99
    assert len(results) > len(found.image)
    assert (found.matched & found.ignored)[0].any()  # to crowds
    assert (found.matched & ~found.ignored)[1:].any(1).all()
    assert (found.objects.sum((0, 2)) == 0).any()
    assert (found.matched[0] & 1).sum() > (found.matched[0] >> 9 & 1).sum() > 0


def test_of_equal_overlaps_the_later_object_is_taken():
    """So that nothing is left for the second detection, which lies on it."""
    truth, _ = random_set(0)
    image, category = truth["images"][0]["id"], truth["categories"][0]["id"]
    here = dict(image_id=image, category_id=category)
    truth["annotations"] = [
        dict(here, id=i + 1, bbox=[x, 0, 10, 10], area=100, iscrowd=0) for i, x in enumerate((0, 4))
    ]
    results = [dict(here, bbox=[x, 0, 10, 10], score=s) for x, s in ((2, 0.9), (4, 0.8))]
    theirs = pycocotools(truth, results, "box")
    ours = matches.compute(truth, results)
    assert (ours.matched[0] & 1).tolist() == [1, 0]
    assert average_precision.coco_figures(ours)["AP50"] == pytest.approx(
        100 * theirs.stats[1], abs=1e-9
    )


@pytest.mark.parametrize("kind", matches.KINDS)
def test_the_published_figures(kind):
    if not PUBLISHED.is_dir():
        pytest.skip("no ../shared")
    results = next(PUBLISHED.glob(f"*fake{IOU_TYPE[kind]}*.json"))
    found = matches.of_file(next(PUBLISHED.glob("*_100.json")), results, kind)
    figures = [f"{value / 100:.3f}" for value in average_precision.coco_figures(found).values()]
    lines = (PUBLISHED / "val2014_fake_eval_res.txt").read_text().splitlines()
    published = [line.split()[-1] for line in lines if "IoU=" in line]
    first = 12 * ("mask", "box").index(kind)
    assert figures == [f"{float(value):.3f}" for value in published[first : first + 12]]


def test_nothing_found_is_zero_and_nothing_to_find_is_none():
    truth, _ = random_set(0)
    figures = average_precision.coco_figures(matches.compute(truth, []))
    assert set(figures.values()) == {0.0}
    truth["annotations"] = [a for a in truth["annotations"] if a["area"] < 90**2]
    figures = average_precision.coco_figures(matches.compute(truth, []))
    assert [f for f, value in figures.items() if value is None] == ["APl", "ARl"]


@pytest.fixture
def run(tmp_path):
    """A finished run's folder, and its ground truth's file."""
    truth, results = random_set(1)
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "coco_instances_results.json").write_text(json.dumps(results))
    records.write(folder, make(data={"digest": "d", "val": str(path)}))
    return folder, path


def test_matches_are_kept_beside_the_record(run, monkeypatch):
    folder, _ = run
    first = matches.of_run(folder, "mask")
    assert [p.name for p in folder.glob("*matches*")] == ["matches_mask.npz"]
    with monkeypatch.context() as patch:
        patch.setattr(matches, "compute", None)
        again = matches.of_run(folder, "mask")
    for name, value in vars(first).items():
        assert np.array_equal(getattr(again, name), value)
        assert getattr(getattr(again, name), "dtype", None) == getattr(value, "dtype", None)


def test_matches_of_other_predictions_or_truth_are_not_used(run):
    folder, path = run
    first = matches.of_run(folder)
    predictions = folder / "coco_instances_results.json"
    predictions.write_text(json.dumps(json.loads(predictions.read_text())[:-5]))
    second = matches.of_run(folder)
    assert len(second.image) == len(first.image) - 5
    truth = json.loads(path.read_text())
    truth["annotations"] = truth["annotations"][:-5]
    path.write_text(json.dumps(truth))
    third = matches.of_run(folder)
    assert third.objects[:, :, 0].sum() < second.objects[:, :, 0].sum()


@pytest.mark.parametrize("content", [b"", b"PK", None])
def test_a_broken_file_is_made_again(run, content, monkeypatch):
    folder, _ = run
    first = matches.of_run(folder)
    path = folder / "matches_box.npz"
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    assert np.array_equal(matches.of_run(folder).matched, first.matched)
    monkeypatch.setattr(matches, "compute", None)
    assert np.array_equal(matches.of_run(folder).matched, first.matched)


def test_a_folder_that_cannot_be_written_to_is_no_obstacle(run):
    folder, _ = run
    (folder / f".matches_box.npz.{os.getpid()}").mkdir()  # where the file would be written first
    assert len(matches.of_run(folder).image)
    assert not list(folder.glob("matches*"))


def test_runs_that_have_no_such_matches(run):
    folder, path = run
    records.write(folder, make(data={"digest": "d", "val": str(path)}, mask={}))
    with pytest.raises(UserError, match="no mask AP"):
        matches.of_run(folder, "mask")
    records.write(folder, make(data={"digest": "d", "val": str(path), "kind": "lvis"}))
    with pytest.raises(UserError, match=r"the ground truth of .* has an entry without 'not_exh"):
        matches.of_run(folder)
    records.write(folder, make(data={"digest": "d", "val": "/nowhere/truth.json"}))
    with pytest.raises(UserError, match=r"cannot read /nowhere/truth\.json"):
        matches.of_run(folder)


def changed(key: str, value) -> callable:
    return lambda results: results[3].update({key: value})


WRONG = {
    "image 5 at entry 3,": changed("image_id", 5),
    "image '7' at entry 3,": changed("image_id", "7"),
    "image 10{30} at entry 3,": changed("image_id", 10**30),
    "category 10000 at entry 3,": changed("category_id", 10000),
    "category -10{30} at entry 3,": changed("category_id", -(10**30)),
    r"box \[1.0, nan, 2.0, 3.0\] at entry 3": changed("bbox", [1, float("nan"), 2, 3]),
    r"box \[1.0, 1.0, -2.0, 3.0\] at entry 3": changed("bbox", [1, 1, -2, 3]),
    r"bbox \[1, 1, 2\] at entry 3: it must be 4 numbers": changed("bbox", [1, 1, 2]),
    "score 1.01 at entry 3": changed("score", 1.01),
    "score -0.5 at entry 3": changed("score", -0.5),
    "score nan at entry 3": changed("score", float("nan")),
    "score 'high' at entry 3: it must be a number": changed("score", "high"),
    "entry 3 twice, again as 40": lambda results: results.__setitem__(40, dict(results[3])),
    "score None at entry 3: it must be a number": changed("score", None),
    "score '0.5' at entry 3: it must be a number": changed("score", "0.5"),
    "score 10{400} at entry 3: it must be a number": changed("score", 10**400),
    "no 'score' at entry 3": lambda results: results[3].pop("score"),
    "no 'bbox' at entry 3": lambda results: results[3].pop("bbox"),
    "no 'segmentation' at entry 3": lambda results: results[3].pop("segmentation"),
    "1 at entry 3: it is no detection": lambda results: results.__setitem__(3, 1),
    "None at entry 3: it is no detection": lambda results: results.__setitem__(3, None),
    "mask of size None at entry 3": changed("segmentation", dict(size=None, counts="P4")),
    "mask of size 4 at entry 3": changed("segmentation", dict(size=4, counts="P4")),
    "mask of size None at entry 3: ": changed("segmentation", dict(counts="P4")),
    "entry 3 with a mask that is": changed("segmentation", dict(size=[SIDE, SIDE])),
    r"mask of size \[5, 4\] at entry 3": changed("segmentation", dict(size=[5, 4], counts="P4")),
    "entry 3 with a mask that is not": changed("segmentation", [[1, 1, 2, 2, 3, 3]]),
    "entry 4 with a mask that is not": lambda results: results[4].update(
        segmentation=dict(size=[SIDE, SIDE], counts=[SIDE**2])
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_predictions(message, tmp_path):
    truth, results = random_set(1)
    WRONG[message](results)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(results))
    kind = "mask" if "mask" in message or "segmentation" in message else "box"
    with pytest.raises(UserError, match=message) as caught:
        matches.of_file(tmp_path / "truth.json", tmp_path / "results.json", kind)
    assert str(tmp_path / "results.json") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no valid JSON"),
        ("{}", "no list of detections"),
        (None, "read"),
    ],
)
def test_files_without_predictions(content, message, tmp_path):
    truth, _ = random_set(1)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        matches.of_file(tmp_path / "truth.json", path)
    assert str(path) in str(caught.value)
