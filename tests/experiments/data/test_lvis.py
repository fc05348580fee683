"""LVIS: the mini set in its format, sampling, loss, scores, and a run from end to end."""

import contextlib
import copy
import io
import itertools
import json
import logging
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets import builtin
from detectron2.data.detection_utils import get_fed_loss_cls_weights
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.evaluation import lvis_evaluation
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from lvis import LVIS

from analysis import paper
from experiments import records
from experiments.data import catalog
from experiments.data.mini import detection as mini
from experiments.data.mini import lvis as mini_lvis
from experiments.data.stream import Stream, repeat_factors, training_loader
from experiments.errors import UserError
from experiments.evaluation import average_precision, matches
from experiments.evaluation.evaluate import evaluate, figures, lvis_figures, set_num_classes
from experiments.jobs import detection
from experiments.jobs.runs import DetectionRun
from experiments.recipe import checks, config, identity
from experiments.recipe.words import set_words
from tests.conftest import ROOT

VERIFIED = {
    split: {"warm square": 900, "warm disk": 400, "cold square": 500, "cold disk": 900}
    for split in mini.IMAGES
}


@pytest.fixture(scope="module")
def small(small_set, tmp_path_factory) -> dict[str, catalog.Split]:
    """24 + 10 images of the mini set in LVIS format."""
    root = tmp_path_factory.mktemp("small-lvis")
    splits = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mini_lvis, "VERIFIED", VERIFIED)
        patch.setattr(mini_lvis, "RARE", 4)
        patch.setattr(mini_lvis, "COMMON", 8)
        for split, text in zip(("train", "val"), small_set.values(), strict=True):
            given = catalog.parse_split(text)
            coco = {"info": {}, **json.loads(Path(given.json_file).read_text())}
            lvis = mini_lvis.federate(coco, split)
            if split == "train":
                categories = mini_lvis.categories(coco, lvis)
            path = root / f"{split}.json"
            path.write_text(json.dumps(lvis | {"categories": categories}))
            splits[split] = catalog.Split(str(path), str(Path(given.image_root).parent), "lvis")
    return splits


@pytest.fixture(scope="module")
def data(small) -> catalog.Data:
    return catalog.Data.of(small["train"], small["val"])


# ---- The mini set in LVIS format ---------------------------------------------------------------


def test_what_is_verified_is_whole_and_the_rest_is_left_out(small, small_set):
    kinds = Counter()
    for split, text in zip(small.values(), small_set.values(), strict=True):
        coco = json.loads(Path(catalog.parse_split(text).json_file).read_text())
        lvis = json.loads(Path(split.json_file).read_text())
        for image, category in itertools.product(lvis["images"], range(1, 5)):
            drawn, annotated = (
                [
                    a
                    for a in part["annotations"]
                    if (a["image_id"], a["category_id"]) == (image["id"], category)
                ]
                for part in (coco, lvis)
            )
            singles = [a for a in drawn if not a["iscrowd"]]
            negative = category in image["neg_category_ids"]
            partly = category in image["not_exhaustive_category_ids"]
            if negative:
                assert not drawn
            if annotated:
                assert [a["bbox"] for a in annotated] == [a["bbox"] for a in singles]
                assert partly == (len(singles) < len(drawn))
            else:
                assert not partly
            kinds["negative"] += negative
            kinds["positive"] += bool(annotated)
            kinds["unverified, though there"] += bool(singles) and not annotated
            kinds["not exhaustive"] += partly
    assert len(kinds) == 4
    assert min(kinds.values()) > 0


def test_counts_are_those_of_the_training_set(small, data):
    train_set, val_set = (json.loads(Path(s.json_file).read_text()) for s in small.values())
    assert train_set["categories"] == val_set["categories"]
    counts = Counter(a["category_id"] for a in train_set["annotations"])
    for category, images in zip(train_set["categories"], data.image_counts, strict=True):
        assert category["image_count"] == images
        assert category["instance_count"] == counts[category["id"]]
    assert {c["frequency"] for c in train_set["categories"]} == {"r", "c", "f"}


def test_the_whole_set_is_long_tailed():
    if not (ROOT / "datasets" / f"mini-v{mini.VERSION}").is_dir():
        pytest.skip("the mini set is not made yet: make data")
    whole = catalog.prepare("mini", dataset="lvis")
    parts = json.loads(Path(whole.val.json_file).read_text())
    assert sorted(c["frequency"] for c in parts["categories"]) == ["c", "f", "f", "r"]
    images = Counter(a["category_id"] for a in parts["annotations"])
    assert min(images.values()) > 50  # so many objects the AP of each category is of
    assert catalog.test_split("mini_lvis_val") == whole.val
    assert catalog.parse_split(str(whole.val)) == whole.val
    assert catalog.prepare("mini").digest != whole.digest


def test_made_the_same_again(tmp_path, monkeypatch):
    monkeypatch.setattr(mini, "IMAGES", {"train": 6, "val": 3})
    roots = [mini_lvis.ensure(tmp_path / name) for name in ("one", "other")]
    for split in mini.IMAGES:
        one, other = ((root / f"lvis_{split}.json").read_bytes() for root in roots)
        assert one == other
    before = (roots[0] / "lvis_val.json").stat().st_mtime_ns
    assert mini_lvis.ensure(tmp_path / "one") == roots[0]
    assert (roots[0] / "lvis_val.json").stat().st_mtime_ns == before
    assert sorted(p.name for p in roots[0].iterdir()) == ["lvis_train.json", "lvis_val.json"]


def test_detectron2_reads_it(small):
    dicts = get_detection_dataset_dicts(small["val"].register(), filter_empty=False)
    lvis = LVIS(small["val"].json_file)
    assert [d["image_id"] for d in dicts] == sorted(lvis.imgs)
    for entry in dicts:
        assert Path(entry["file_name"]).is_file()
        assert entry["neg_category_ids"] == lvis.imgs[entry["image_id"]]["neg_category_ids"]
        found = [a["category_id"] - 1 for a in lvis.img_ann_map[entry["image_id"]]]
        assert [a["category_id"] for a in entry["annotations"]] == found


# ---- Sampling ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_tail() -> list[dict]:
    rng = np.random.default_rng(0)
    return [
        {"id": i, "annotations": [{"category_id": c} for c in rng.zipf(1.5, rng.integers(6))]}
        for i in range(300)
    ]


@pytest.mark.parametrize(
    ("threshold", "repeats"), [(0.0, False), (0.001, False), (0.05, True), (0.4, True)]
)
def test_repeat_factors_are_detectron2s(long_tail, threshold, repeats, small):
    logging.getLogger("detectron2.data.samplers.distributed_sampler").setLevel(logging.ERROR)
    peers = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
    for dicts in (long_tail, get_detection_dataset_dicts(small["train"].register())):
        ours = repeat_factors(dicts, threshold)
        np.testing.assert_allclose(ours, peers(dicts, threshold).numpy(), rtol=1e-6)
    assert (repeat_factors(long_tail, threshold) > 1).any() == repeats


def test_each_image_comes_as_often_as_its_factor_says(long_tail):
    stream, epochs = Stream(long_tail, lambda d: d, 0, 0.4), 60
    position, seen = 0, Counter()
    for _ in range(epochs):
        stream.source(position)  # what epoch this is
        start, end = stream._starts[-2:]
        assert start == position
        in_epoch = Counter(stream.source(p)["id"] for p in range(start, end))
        for entry, factor in zip(long_tail, stream.factors, strict=True):
            assert np.floor(factor) <= in_epoch[entry["id"]] <= np.ceil(factor)
        seen += in_epoch
        position = end
    mean = np.array([seen[d["id"]] for d in long_tail]) / epochs
    # A mean of 60 roundings is off by at most 4 of its standard deviations.
    assert np.abs(mean - stream.factors).max() < 4 * 0.5 / epochs**0.5
    assert stream.factors.max() > 2


@pytest.mark.parametrize("start", [1, 299, 7000])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stream_goes_on_where_it_was(long_tail, start, workers):
    def loader(start, workers):
        return training_loader(Stream(long_tail, _number_and_draw, 3, 0.4), start, 4, workers)

    whole = Stream(long_tail, _number_and_draw, 3, 0.4)
    expected = [whole[p] for p in range(start, start + 12)]
    batches = itertools.islice(loader(start, workers), 3)
    assert [x for batch in batches for x in batch] == expected


def _number_and_draw(entry: dict) -> tuple[int, int]:
    return entry["id"], int(np.random.randint(1_000_000))


def test_without_repeats_the_stream_is_numpys_permutation_of_each_epoch(long_tail):
    stream = Stream(long_tail, lambda d: d, 5)
    for epoch in (0, 3, 1):
        order = np.random.default_rng([5, epoch]).permutation(300)
        at = range(epoch * 300, epoch * 300 + 300)
        assert [stream.source(p)["id"] for p in at] == order.tolist()


# ---- Federated loss ----------------------------------------------------------------------------


def predictors(model) -> list[FastRCNNOutputLayers]:
    return [m for m in model.modules() if isinstance(m, FastRCNNOutputLayers)]


@pytest.mark.parametrize("detector", ["mask_rcnn", "cascade_mask_rcnn"])
def test_the_loss_draws_by_the_images_of_the_training_set(data, detector):
    counted = json.loads(Path(data.train.json_file).read_text())["categories"]
    MetadataCatalog.get("small-lvis").class_image_count = counted
    peers = get_fed_loss_cls_weights("small-lvis", 0.5)
    cfg = config.load(ROOT / f"configs/lvis/{detector}_vit_b.py")
    set_num_classes(cfg, len(data.categories))
    model = torch.nn.ModuleDict(dict(heads=instantiate(cfg.model.roi_heads)))
    detection.set_federated_loss(model, data.image_counts)
    assert len(predictors(model)) == (1 if detector == "mask_rcnn" else 3)
    for predictor in predictors(model):
        torch.testing.assert_close(predictor.fed_loss_cls_weights, peers)
        assert predictor.fed_loss_num_classes == len(data.categories)


def test_categories_without_images_are_never_drawn():
    cfg = config.load(ROOT / "configs/mini/lvis_mask_rcnn_vit_mini.py")
    predictor = instantiate(cfg.model.roi_heads.box_predictor)
    detection.set_federated_loss(predictor, (9, 0, 4, 0))
    assert predictor.fed_loss_num_classes == 2
    labels = torch.tensor([0, 4, 4])  # an object of the first, and background
    scores = torch.zeros(3, 5, requires_grad=True)
    for _ in range(20):
        predictor.sigmoid_cross_entropy_loss(scores, labels).backward()
    assert (scores.grad[:, [1, 3, 4]] == 0).all()
    assert (scores.grad[:, 0] != 0).all()


# ---- Scores ------------------------------------------------------------------------------------


def perfect(lvis: LVIS) -> list[dict]:
    return [
        dict(
            image_id=a["image_id"],
            category_id=a["category_id"],
            bbox=list(a["bbox"]),
            segmentation=lvis.ann_to_rle(a),
            score=0.5,
        )
        for a in lvis.anns.values()
    ]


@pytest.fixture
def val(small) -> LVIS:
    return LVIS(small["val"].json_file)


def scored(lvis: LVIS, results: list[dict], kind: str = "box") -> dict[str, float | None]:
    found = matches.compute(lvis.dataset, results, kind, rules="lvis")
    return average_precision.lvis_figures(found)


@pytest.mark.parametrize("kind", matches.KINDS)
def test_all_found_is_100_half_is_less_nothing_is_0(val, kind):
    all_found = perfect(val)
    whole, half, nothing = (
        scored(val, results, kind) for results in (all_found, all_found[::2], [])
    )
    assert tuple(whole) == tuple(half) == tuple(nothing) == records.LVIS_FIGURES
    for figure in records.LVIS_FIGURES:
        if whole[figure] is None:
            assert half[figure] is nothing[figure] is None
        else:
            assert whole[figure] == pytest.approx(100)
            assert nothing[figure] == 0
    assert 10 < half["AP"] < 90


@pytest.mark.parametrize("kind", matches.KINDS)
def test_figures_are_detectron2s(val, kind, monkeypatch):
    rng = np.random.default_rng(0)
    results = perfect(val)
    for result in results:
        result["score"] = float(rng.random())
        result["category_id"] = int(rng.choice([result["category_id"], 1, 2, 3, 4]))
        result["bbox"] = [float(v) for v in np.array(result["bbox"]) + rng.normal(0, 3, 4)]
    ours = scored(val, results, kind)
    task = {"box": "bbox", "mask": "segm"}[kind]
    monkeypatch.setattr(np, "float", float, raising=False)  # numpy dropped it, lvis needs it
    with contextlib.redirect_stdout(io.StringIO()):
        peers = lvis_evaluation._evaluate_predictions_on_lvis(val, copy.deepcopy(results), task)
    assert {f: -100 if v is None else v for f, v in ours.items()} == pytest.approx(peers)
    assert 0 < ours["AP"] < 100


def test_figures_of_absent_objects_are_none(val):
    for image in val.dataset["images"]:
        image["neg_category_ids"] = []
    for category in val.cats.values():
        category["frequency"] = "f"
    for results in (perfect(val), []):
        found = scored(val, results)
        assert found["APr"] is found["APc"] is None
        assert found["APf"] == found["AP"]


@pytest.mark.parametrize("kind", matches.KINDS)
def test_what_has_no_matches_is_scored_by_lvis(val, small, kind, tmp_path, caplog):
    path = tmp_path / "results.json"
    results = perfect(val)[::2]
    for result in results:
        result["segmentation"]["counts"] = result["segmentation"]["counts"].decode()
    path.write_text(json.dumps(results))
    truth = Path(small["val"].json_file)
    ours = figures(truth, path, kind, "lvis")
    assert lvis_figures(truth, path, kind) == pytest.approx(ours)
    assert not caplog.records
    path.write_text(json.dumps([*results, results[0]]))
    twice = figures(truth, path, kind, "lvis")
    assert "twice" in caplog.text
    assert tuple(twice) == records.LVIS_FIGURES
    assert 0 < twice["AP"] < ours["AP"]


def _wrong(lvis: LVIS, kind: str) -> dict:
    """A detection at score 0.9 where there is no annotation, of one of three kinds."""
    positive = {(a["image_id"], a["category_id"]) for a in lvis.anns.values()}
    for image, category in itertools.product(lvis.imgs.values(), lvis.cats):
        negative = category in image["neg_category_ids"]
        partly = category in image["not_exhaustive_category_ids"]
        there = (image["id"], category) in positive
        if (kind == "negative" and negative) or (kind == "not exhaustive" and partly):
            break
        if kind == "unverified" and not (there or negative):
            break
    else:
        raise AssertionError(kind)
    return dict(image_id=image["id"], category_id=category, bbox=[0.0, 0.0, 3.0, 3.0], score=0.9)


@pytest.mark.parametrize(
    ("kind", "counts"), [("unverified", False), ("not exhaustive", False), ("negative", True)]
)
def test_only_what_is_known_to_be_wrong_counts(small, kind, counts):
    lvis = LVIS(small["train"].json_file)
    right = scored(lvis, perfect(lvis))["AP"]
    wrong = scored(lvis, [*perfect(lvis), _wrong(lvis, kind)])["AP"]
    assert (wrong < right - 0.1) == counts


def test_300_detections_per_image_count(val):
    results = perfect(val)
    image = results[0]["image_id"]
    noise = dict(image_id=image, category_id=results[0]["category_id"], score=0.9)
    of_image = [r for r in results if r["image_id"] == image]
    for number, some in ((250, True), (320, False)):
        wrong = [dict(noise, bbox=[0, 0, 1, 1 + i / 1000]) for i in range(number)]
        assert (scored(val, of_image + wrong)["AP50"] > 0) == some


# ---- A run -------------------------------------------------------------------------------------


def run_of(base: str, data: catalog.Data, folder: Path, **words) -> DetectionRun:
    cfg = config.load(ROOT / base)
    set_words(cfg, {"train.amp": False, "train.log_period": 1, **words}, "the test")
    mark = identity.fingerprint(cfg, data.digest)
    study = "global-vs-conv"
    return DetectionRun(
        study=study, source=study, home=study, variant="none", scale="mini", size="vit-mini",
        seed=0, fingerprint=mark, folder=str(folder), cfg=cfg, data=data,
    )  # fmt: skip


def lvis_run(data: catalog.Data, folder: Path) -> DetectionRun:
    words = {
        "train.max_iter": 6,
        "train.checkpoint_period": 3,
        "model.roi_heads.box_predictor.test_score_thresh": 0.0,
    }
    return run_of("configs/mini/lvis_mask_rcnn_vit_mini.py", data, folder, **words)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    run = lvis_run(data, tmp_path_factory.mktemp("runs") / "run")
    return Path(run()).parent


def test_a_run_on_lvis(data, finished, tmp_path):
    record = records.read(finished / "record.json")
    assert tuple(record.box) == tuple(record.mask) == records.LVIS_FIGURES
    assert 0 <= record.box["AP"] <= 100
    assert record.data["kind"] == "lvis"
    predictions = json.loads((finished / record.predictions).read_text())
    assert {p["category_id"] for p in predictions} <= set(range(1, 5))
    assert {"image_id", "bbox", "score", "segmentation"} <= predictions[0].keys()
    frame = records.load(finished)
    assert {"apr_box", "apf_mask"} <= set(frame.columns)
    assert "ar100_box" not in frame.columns

    cfg = config.load(finished / "config.yaml")
    split = catalog.test_split(cfg.dataloader.test.dataset)
    assert split == data.val
    model = instantiate(cfg.model)
    DetectionCheckpointer(model).load(str(finished / "model_final.pth"))
    images = np.array(data.image_counts, dtype=np.float32)
    weights = model.roi_heads.box_predictor.fed_loss_cls_weights.numpy()
    np.testing.assert_allclose(weights, np.sqrt(images), rtol=1e-6)
    again = evaluate(model, cfg, split, tmp_path)
    assert again.box == pytest.approx(record.box)
    assert again.mask == pytest.approx(record.mask)


def test_a_resumed_run_on_lvis_goes_on_as_it_would_have(data, finished, tmp_path):
    """Order of images, and categories that the federated loss draws."""
    resumed = tmp_path / "study" / "run"  # what is known of trained runs lies beside the study
    resumed.mkdir(parents=True)
    run = lvis_run(data, resumed)
    detection.fit_run(run.cfg, run)
    (resumed / "model_final.pth").unlink()  # as if it had not come so far
    lvis_run(data, resumed)()
    assert "Starting training from iteration 3" in (resumed / "log.txt").read_text()
    one, other = (
        torch.load(folder / "model_final.pth", weights_only=True)["model"]
        for folder in (finished, resumed)
    )
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_detector_without_masks_is_scored_by_boxes_alone(small_set, data, tmp_path):
    coco = catalog.prepare("mini", small_set["dataset"], small_set["val"])
    run = run_of(
        "configs/mini/retinanet_vit_mini.py",
        coco,
        tmp_path / "run",
        **{"train.max_iter": 2, "model.test_score_thresh": 0.0},
    )
    record = records.read(Path(run()))
    assert tuple(record.box) == records.COCO_FIGURES
    assert record.mask == {}
    assert record.data["kind"] == "coco"
    assert "segmentation" not in (tmp_path / "run" / record.predictions).read_text()
    assert "ap_mask" not in records.load(tmp_path).columns
    cfg = config.load(tmp_path / "run" / "config.yaml")
    result = evaluate(instantiate(cfg.model), cfg, data.val, tmp_path)
    assert tuple(result.box) == records.LVIS_FIGURES
    assert result.mask == {}


# ---- Configs -----------------------------------------------------------------------------------


def files(row: dict) -> Path:
    """The name of a released config: ".../mask_rcnn_vitdet_b_100ep.py" is mask_rcnn_vit_b.py."""
    stem = re.sub(r"(_in21k)?_\d+ep\.py$", "", row["config"].removeprefix("LVIS/"))
    return ROOT / "configs" / "lvis" / f"{stem.replace('vitdet', 'vit')}.py"


RELEASED = paper.load("released_configs").query("dataset == 'LVIS'").to_dict("records")


@pytest.mark.parametrize("row", RELEASED, ids=lambda row: files(row).stem)
def test_released_recipes(row):
    cfg = config.load(files(row))
    backbone = cfg.model.backbone
    assert cfg.optimizer.lr == pytest.approx(row["lr"])
    assert cfg.optimizer.weight_decay == row["weight_decay"]
    assert backbone.get("bottom_up", backbone).drop_path_rate == row["drop_path"]
    decay = 1.0 if math.isnan(row["layerwise_lr_decay"]) else row["layerwise_lr_decay"]
    assert cfg.param_groups.layer_decay == pytest.approx(decay)
    assert cfg.train.max_iter == row["max_iter"]
    assert cfg.dataloader.train.total_batch_size == row["batch"]
    assert cfg.dataloader.image_size == row["image_size"]
    assert cfg.schedule.warmup_iters == row["warmup_iters"]
    schedule = instantiate(cfg.schedule.decay)
    for step, (before, after) in ((1, (1, 0.1)), (2, (0.1, 0.01))):
        milestone = row[f"lr_milestone_{step}"]
        assert schedule((milestone - 2) / row["max_iter"]) == before
        assert schedule((milestone + 2) / row["max_iter"]) == after
    assert (cfg.dataloader.train.dataset, cfg.dataloader.test.dataset) == (
        "lvis_v1_train",
        "lvis_v1_val",
    )
    assert cfg.dataloader.train.repeat_threshold == 0.001
    heads = checks.check(cfg, "the config").roi_heads
    assert heads.num_classes == 1203
    for predictor in predictors(heads):
        assert predictor.use_sigmoid_ce
        assert predictor.use_fed_loss
        assert predictor.fed_loss_num_classes == 50
        assert predictor.test_score_thresh == 0.02
        assert predictor.test_topk_per_image == 300
        assert tuple(predictor.fed_loss_cls_weights.shape) == (1203,)
    assert len(predictors(heads)) == (3 if "Cascade" in row["detector"] else 1)


def test_the_mini_config_repeats_as_lvis_does():
    """LVIS's threshold is the share of images of its most frequent common category."""
    cfg = config.load(ROOT / "configs/mini/lvis_mask_rcnn_vit_mini.py")
    limit = mini_lvis.COMMON / mini.IMAGES["train"]
    assert cfg.dataloader.train.repeat_threshold == pytest.approx(limit)
    assert cfg.model.roi_heads.num_classes == len(mini.CATEGORIES)


# ---- Bad input ---------------------------------------------------------------------------------


def _change(part, index, **entries):
    def change(lvis):
        lvis[part][index].update(entries)

    return change


def _drop(part, index, key):
    def change(lvis):
        del lvis[part][index][key]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop("images", 0, "neg_category_ids"), "lacks 'neg_category_ids'"),
        (_drop("images", 0, "coco_url"), "lacks 'coco_url'"),
        (_drop("categories", 0, "frequency"), "lacks 'frequency'"),
        (_change("categories", 0, frequency="x"), "category 1 has frequency 'x': LVIS knows r, c"),
        (_change("categories", 3, id=9), "LVIS numbers its categories 1, 2, 3"),
        (
            _change("images", 0, not_exhaustive_category_ids=[7]),
            "its not_exhaustive_category_ids has [7], which are no categories",
        ),
        (
            _change("images", 0, coco_url="http://a/val/none.bmp"),
            "val/none.bmp",
        ),
        (_change("annotations", 0, segmentation={"counts": [1]}), "no list of polygons"),
        (_change("annotations", 0, segmentation=[[1, 2, 3, 4]]), "a polygon of 4 numbers"),
        (_change("annotations", 0, image_id=99), "image 99 is not listed"),
    ],
)
def test_a_file_that_is_no_lvis_set(small, tmp_path, change, message):
    lvis = json.loads(Path(small["val"].json_file).read_text())
    change(lvis)
    path = tmp_path / "val.json"
    path.write_text(json.dumps(lvis))
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        catalog.prepare("mini", str(small["train"]), f"lvis:{path},{small['val'].image_root}")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_coco_set_is_no_lvis_set(small_set):
    with pytest.raises(UserError, match="lacks 'coco_url'"):
        catalog.prepare("mini", f"lvis:{small_set['dataset']}", f"lvis:{small_set['val']}")


@pytest.fixture
def lvis_root(tmp_path):
    """An empty folder where detectron2 looks for LVIS, as $DETECTRON2_DATASETS would be."""

    def look_in(root):
        for name in itertools.chain(*builtin._PREDEFINED_SPLITS_LVIS.values()):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        builtin.register_all_lvis(str(root))

    look_in(tmp_path)
    yield tmp_path
    look_in(builtin._root)


def test_lvis_that_is_not_there(lvis_root):
    with pytest.raises(UserError) as caught:
        catalog.prepare("coco", dataset="lvis")
    where = f"{lvis_root}/lvis/lvis_v1_train.json with images in {lvis_root}/coco"
    assert str(caught.value).startswith(f"no LVIS v1 at {where}: set DETECTRON2_DATASETS")
    with pytest.raises(UserError, match="unknown data set 'lvis_v2_val': did you mean"):
        catalog.test_split("lvis_v2_val")
    with pytest.raises(UserError, match="unknown kind of data set 'lvs': did you mean 'lvis'"):
        catalog.prepare("mini", dataset="lvs")


def test_lvis_is_found_as_detectron2_finds_it(lvis_root, small):
    (lvis_root / "coco").mkdir()
    (lvis_root / "lvis").mkdir()
    for name, split in small.items():
        (lvis_root / "coco" / f"{name}2017").symlink_to(Path(split.image_root) / name)
        lvis = json.loads(Path(split.json_file).read_text())
        for image in lvis["images"]:
            image["coco_url"] = f"http://images/{name}2017/{image['coco_url'].split('/')[-1]}"
        (lvis_root / "lvis" / f"lvis_v1_{name}.json").write_text(json.dumps(lvis))
    found = catalog.prepare("coco", dataset="lvis")
    assert found.categories == mini.CATEGORIES
    assert catalog.test_split("lvis_v1_val") == found.val
    dicts = get_detection_dataset_dicts(found.val.register(), filter_empty=False)
    assert all(Path(d["file_name"]).parent == lvis_root / "coco" / "val2017" for d in dicts)
