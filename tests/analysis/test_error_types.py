"""Error types: by hand where each is known, and as the package of TIDE's authors finds them."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from analysis import error_types, results
from analysis.error_types import TYPES
from experiments import records
from experiments.errors import UserError
from experiments.evaluation import average_precision, matches
from tests.experiments.evaluation.test_matches import random_set


def annotation(image: int, category: int, box: list[float], **words) -> dict:
    area = box[2] * box[3]
    return dict(image_id=image, category_id=category, bbox=box, area=area, iscrowd=0, **words)


def one_of_each() -> tuple[dict, list[dict]]:
    """Three objects of category 1, one of them found, and two of category 2; each error once."""
    here, aside = [10, 10, 30, 30], [25, 10, 30, 30]  # IoU 1/3
    annotations = [
        annotation(1, 1, here, id=1),
        annotation(2, 1, here, id=2),
        annotation(6, 1, here, id=3),  # missed
        annotation(3, 2, here, id=4),
        annotation(4, 2, here, id=5),  # missed: what lies aside is of another category too
    ]
    found = [
        (5, here, 0.95),  # background
        (1, here, 0.9),
        (1, here, 0.8),  # duplicate
        (2, aside, 0.7),  # localisation
        (3, here, 0.6),  # classification
        (4, aside, 0.5),  # both
    ]
    truth = dict(
        images=[dict(id=i, height=60, width=60) for i in range(1, 7)],
        categories=[dict(id=1, name="one"), dict(id=2, name="two")],
        annotations=annotations,
    )
    return truth, [dict(image_id=i, category_id=1, bbox=b, score=s) for i, b, s in found]


def test_each_type_by_hand():
    found = error_types.compute(*one_of_each())
    assert list(found.index) == list(TYPES)
    assert found["count"].to_dict() == dict(cls=1, loc=1, both=1, dupe=1, bkg=1, miss=2)
    # Category 1: the first right detection comes second, and reaches 34 of the 101 recalls; with a
    # second one, fourth, it is 67. Category 2 has none right.
    gains = dict(
        cls=51,  # category 2: one of two, with precision 1
        loc=(67 - 34) / 2,
        both=0,
        dupe=0,
        bkg=34 / 2,
        miss=(51 - 34) / 2,  # one of two objects
    )
    expected = {name: 100 * gain / 101 / 2 for name, gain in gains.items()}
    assert found["dap50"].to_dict() == pytest.approx(expected)


def test_of_several_detections_that_a_correction_would_make_right_one_is():
    truth, predictions = one_of_each()
    before = error_types.compute(truth, predictions)
    predictions.append(dict(predictions[3], bbox=[25, 11, 30, 30], score=0.65))
    after = error_types.compute(truth, predictions)
    assert after["count"]["loc"] == 2
    assert after["dap50"]["loc"] == pytest.approx(before["dap50"]["loc"])


def test_a_detection_in_a_crowd_is_no_error():
    truth, predictions = one_of_each()
    before = error_types.compute(truth, predictions)
    truth["annotations"].append(dict(annotation(6, 1, [0, 40, 60, 20], id=6), iscrowd=1))
    predictions += [dict(predictions[0], image_id=6, bbox=[x, 42, 9, 9]) for x in (5, 15)]
    pd.testing.assert_frame_equal(error_types.compute(truth, predictions), before)


def test_categories_without_objects_are_left_out():
    truth, predictions = one_of_each()
    before = error_types.compute(truth, predictions)
    truth["categories"].append(dict(id=3, name="three"))
    predictions.append(dict(predictions[0], category_id=3))
    after = error_types.compute(truth, predictions)
    assert after["dap50"].to_dict() == pytest.approx(before["dap50"].to_dict())
    assert after["count"]["bkg"] == 2


def test_a_hundred_detections_count_of_each_category_in_an_image():
    truth, predictions = one_of_each()
    more = [
        dict(image_id=5, category_id=c, bbox=[0.1 * i, 0, 5, 5], score=0.3)
        for c in (1, 2)
        for i in range(150)
    ]
    assert error_types.compute(truth, predictions + more)["count"]["bkg"] == 200


@pytest.mark.parametrize("kind", matches.KINDS)
def test_nothing_found(kind):
    truth, _ = random_set(0)
    found = error_types.compute(truth, [], kind)
    objects = [a for a in truth["annotations"] if not a["iscrowd"] and a["image_id"] != 10**6]
    assert found["count"].to_dict() == {**dict.fromkeys(TYPES, 0), "miss": len(objects)}
    assert (found["dap50"].drop("miss") == 0).all()


def distinct(seed: int) -> tuple[dict, list[dict]]:
    """A random set without equal scores, whose order in a corrected run nobody defines, and without
    categories that have no object; some detections are of another category than what they are on.
    """
    truth, predictions = random_set(seed)
    random = np.random.default_rng(seed)
    listed = {image["id"] for image in truth["images"]}
    annotations = [dict(a, id=a["id"] + 1) for a in truth["annotations"] if a["image_id"] in listed]
    there = sorted({a["category_id"] for a in annotations if not a["iscrowd"]})
    changed = [
        dict(p, score=float(score))
        for p, score in zip(predictions, random.permutation(len(predictions)) / 1e4, strict=True)
    ]
    for p in changed:
        if p["category_id"] not in there or random.random() < 0.15:
            p["category_id"] = int(random.choice(there))
    categories = [c for c in truth["categories"] if c["id"] in there]
    return dict(truth, annotations=annotations, categories=categories), changed


def tide(truth: dict, predictions: list[dict], kind: str):
    """The run of TIDE's own code, and the predictions as it judged them."""
    data = pytest.importorskip("tidecv.data")
    objects, found = data.Data("truth"), data.Data("found", max_dets=10**6)
    objects.max_dets = 10**6  # what COCO leaves out is left out before
    for image in truth["images"]:
        objects.add_image(image["id"], "")
    for a in truth["annotations"]:
        add = objects.add_ignore_region if a["iscrowd"] else objects.add_ground_truth
        add(a["image_id"], a["category_id"], a["bbox"], a["segmentation"])
    for p in predictions:
        words = (p["image_id"], p["category_id"], p["score"], p["bbox"], p["segmentation"])
        found.add_detection(*words)
    mode = dict(box="bbox", mask="mask")[kind]
    run = pytest.importorskip("tidecv.quantify").TIDERun(objects, found, 0.5, 0.1, mode, 10**6)
    return run, found.annotations


def ap50(truth: dict, predictions: list[dict], kind: str) -> float:
    return average_precision.figures(matches.compute(truth, predictions, kind))[1]


@pytest.mark.parametrize("kind", matches.KINDS)
@pytest.mark.parametrize("seed", range(10))
def test_errors_are_those_of_the_authors_code(seed, kind, monkeypatch):
    truth, predictions = distinct(seed)
    kept, ignored = [], []
    for size, detections, objects in error_types.by_image(truth, predictions):
        kept += detections
        iou = error_types.overlaps(detections, objects, kind, size)
        ignored += error_types.match(detections, objects, iou)[1].tolist()
    assert len(kept) < len(predictions)
    _, judged = tide(truth, kept, kind)
    # Theirs takes what lies in crowds, by more than half where COCO says by half, for errors.
    in_crowds = [p["used"] is None for p in judged]
    assert any(in_crowds)
    assert all(np.array(ignored) >= in_crowds)
    counting = [p for p, i in zip(kept, ignored, strict=True) if not i]
    run, _ = tide(truth, counting, kind)
    theirs = {error.short_name.lower(): error for error in run.error_dict}
    ours = error_types.compute(truth, predictions, kind)
    assert ours["count"].to_dict() == {name: len(run.error_dict[e]) for name, e in theirs.items()}
    # What is only taken away gains what COCO's evaluation says.
    for name in ("both", "dupe", "bkg"):
        gone = [error.get_id() for error in run.error_dict[theirs[name]]]
        rest = [p for i, p in enumerate(counting) if i not in gone]
        gain = ap50(truth, rest, kind) - ap50(truth, predictions, kind)
        assert ours["dap50"][name] == pytest.approx(gain, abs=1e-9)
    # Theirs has recalls that are floats next to pycocotools'.
    monkeypatch.setattr(average_precision, "_LATE", np.zeros(101, bool))
    ours = error_types.compute(truth, predictions, kind)
    for name, error in theirs.items():
        fixed = run.fix_errors(lambda e, of=error: isinstance(e, of)).get_mAP()
        assert ours["dap50"][name] == pytest.approx(fixed - run.ap, abs=1e-9), name


def test_the_random_sets_have_every_type():
    counts = error_types.compute(*distinct(0))["count"]
    assert (counts > 0).all()


# ---- Of runs -----------------------------------------------------------------------------------


def rewrite(folder, **changes) -> None:
    record = records.read(folder / records.RECORD)
    records.write(folder, dataclasses.replace(record, **changes))


def test_errors_are_kept_beside_the_record(study, monkeypatch):
    first = error_types.of_run(study / "none-0", "mask")
    assert (study / "none-0" / "errors_mask.npz").is_file()
    with monkeypatch.context() as patch:
        patch.setattr(error_types, "compute", None)
        pd.testing.assert_frame_equal(error_types.of_run(study / "none-0", "mask"), first)
    path = study / "none-0" / "coco_instances_results.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:-9]))
    assert not error_types.of_run(study / "none-0", "mask").equals(first)


def test_runs_without_error_types(study):
    record = records.read(study / "none-0" / records.RECORD)
    rewrite(study / "none-0", mask={})
    assert error_types.of_run(study / "none-0", "mask") is None
    rewrite(study / "none-0", data=record.data | {"kind": "lvis"})
    assert error_types.of_run(study / "none-0") is None


def test_predictions_that_are_none_are_refused(study):
    path = study / "none-0" / "coco_instances_results.json"
    found = json.loads(path.read_text())
    found[0]["score"] = 2
    path.write_text(json.dumps(found))
    with pytest.raises(UserError, match="score 2"):
        error_types.of_run(study / "none-0")


def test_picture(study, tmp_path):
    written = error_types.picture(results.load(study), tmp_path / "errors")
    assert [path.name for path in written] == ["errors.png", "errors.svg", "errors.csv"]
    table = pd.read_csv(written[2]).set_index(["kind", "variant", "type"])
    assert len(table) == 2 * 3 * len(TYPES)
    runs = [error_types.of_run(study / f"none-{seed}")["dap50"]["cls"] for seed in (0, 1)]
    row = table.loc["box", "none", "cls"]
    assert row[["dap50_min", "dap50", "dap50_max"]].tolist() == pytest.approx(
        [min(runs), sum(runs) / 2, max(runs)]
    )
    assert table.loc["box", "own", "cls"]["seeds"] == 1
    svg = written[1].read_text()
    assert svg.count("AP50 to gain") == len(table) + 2  # tips, axes
    assert "<title>none, classification\n" in svg
    assert "<pattern" in svg  # hatches


def test_no_picture_of_what_has_no_error_types(study, tmp_path):
    for folder in study.glob("*-?"):
        data = records.read(folder / records.RECORD).data
        rewrite(folder, data=data | {"kind": "lvis"})
    loaded = results.load(study)
    assert error_types.picture(loaded, tmp_path / "errors") == []
    unfinished = dataclasses.replace(loaded, records=pd.DataFrame())
    assert error_types.picture(unfinished, tmp_path / "errors") == []
