"""Evaluation: every image once, on any number of processes, interrupted at any moment."""

import fcntl
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.data import MetadataCatalog
from rich.console import Console

from analysis import evaluation
from experiments import CONFIGS, records
from experiments.data.catalog import Split
from experiments.errors import UserError
from experiments.evaluation import matches, reach
from experiments.evaluation.evaluate import PREDICTIONS, Result, evaluate
from experiments.jobs import evaluate_checkpoint
from experiments.recipe import config
from experiments.recipe.words import parse_overrides, set_words
from experiments.training import distributed
from tests.backbones.weights.test_rotary import as_eva02_det
from tests.conftest import ROOT, write_set

IMAGES, BATCH = 7, 2
KINDS = ["coco", "lvis"]


def as_lvis(file: Path) -> Path:
    """A COCO-format set in LVIS's format, beside it."""
    coco = json.loads(file.read_text())
    for image in coco["images"]:
        image["coco_url"] = f"http://images/{file.stem}/{image.pop('file_name')}"
        image |= dict(neg_category_ids=[], not_exhaustive_category_ids=[])
    for category, frequency in zip(coco["categories"], "rcff", strict=True):
        category |= dict(frequency=frequency, image_count=1, synset=category["name"])
    coco["annotations"] = [a for a in coco["annotations"] if not a["iscrowd"]]  # LVIS has none
    path = file.with_name("lvis.json")
    path.write_text(json.dumps(coco))
    return path


@pytest.fixture(scope="session")
def splits(tmp_path_factory) -> dict[str, Split]:
    root = tmp_path_factory.mktemp("odd-set")
    file = write_set(root, "val", IMAGES)
    lvis = Split(str(as_lvis(file)), str(root), "lvis")
    return {"coco": Split(str(file), str(root / "val")), "lvis": lvis}


def untrained(detector: str = "mask_rcnn", seed: int = 0, **words):
    """A mini detector that finds a few things everywhere, and its config."""
    cfg = config.load(ROOT / f"configs/mini/{detector}_vit_mini.py")
    found = cfg.model.roi_heads.box_predictor if "roi_heads" in cfg.model else cfg.model
    found.test_score_thresh = 0.0
    if "roi_heads" in cfg.model:
        found.test_topk_per_image = 9
    else:
        cfg.model.max_detections_per_image = 9
    small = {"dataloader.test.batch_size": BATCH, "dataloader.test.num_workers": 0}
    set_words(cfg, small | words, "test")
    torch.manual_seed(seed)
    return instantiate(cfg.model), cfg


class Seen:
    """How many images a detector was given."""

    def __init__(self, model):
        self.images = 0
        model.register_forward_pre_hook(self)

    def __call__(self, model, inputs):
        self.images += len(inputs[0])


class StoppedError(Exception):
    pass


def stop_at(images: int):
    def progress(done: int, total: int) -> None:
        if done >= images:
            raise StoppedError

    return progress


@pytest.fixture(scope="module")
def alone(splits, tmp_path_factory) -> dict[str, tuple[Result, bytes]]:
    """What one undisturbed process finds, of each kind."""
    found = {}
    for kind, split in splits.items():
        folder = tmp_path_factory.mktemp(kind)
        result = evaluate(*untrained(), split, folder)
        found[kind] = result, (folder / PREDICTIONS).read_bytes()
    return found


def port() -> str:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return str(free.getsockname()[1])


def in_processes(split: Split, folder: Path, processes: int, kill_at: int = 99) -> list[str]:
    """What each of the processes tells of its result, unless it was killed."""
    fork = multiprocessing.get_context("fork")  # they need not import everything again
    words = (processes, port(), kill_at)
    started = [
        fork.Process(target=process, args=(split, folder, rank, *words))
        for rank in range(processes)
    ]
    for one in started:
        one.start()
    for one in started:
        one.join(timeout=300)
    expected = -signal.SIGKILL if kill_at < 99 else 0
    assert [one.exitcode for one in started] == [expected] * processes
    return [path.read_text() for path in folder.glob("result-*")]


def process(split: Split, folder: Path, rank: int, processes: int, port: str, kill_at: int) -> None:
    words = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=processes)
    os.environ |= {key: str(value) for key, value in words.items()}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port}

    def progress(done: int, total: int) -> None:
        if done >= kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    with distributed.process_group():
        result = evaluate(*untrained(), split, folder, progress)
        (folder / f"result-{rank}").write_text(str(result))


@pytest.mark.parametrize(
    ("kind", "processes"), [("coco", 2), ("lvis", 2), pytest.param("coco", 5, id="idle ones")]
)
def test_several_processes_find_what_one_finds(splits, alone, tmp_path, kind, processes):
    told = in_processes(splits[kind], tmp_path, processes)
    result, predictions = alone[kind]
    assert (tmp_path / PREDICTIONS).read_bytes() == predictions
    assert len(told) == processes
    assert len(set(told)) == 1
    assert f"box={result.box}, mask={result.mask}, images={IMAGES}" in told[0]
    assert not (tmp_path / "detections").exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_it_goes_on_with_the_batches_that_are_missing(splits, alone, tmp_path, processes):
    """On one process after 1 or 2: each had done a batch."""
    in_processes(splits["coco"], tmp_path, processes, kill_at=1)
    assert not (tmp_path / PREDICTIONS).exists()
    model, cfg = untrained()
    seen, told = Seen(model), []
    result = evaluate(model, cfg, splits["coco"], tmp_path, lambda *images: told.append(images))
    assert seen.images == IMAGES - processes * BATCH
    assert told[0] == (processes * BATCH, IMAGES)
    assert told[-1] == (IMAGES, IMAGES)
    assert (tmp_path / PREDICTIONS).read_bytes() == alone["coco"][1]
    assert (result.box, result.mask) == (alone["coco"][0].box, alone["coco"][0].mask)
    assert not (tmp_path / "detections").exists()


def test_more_processes_go_on_after_one(splits, alone, tmp_path):
    with pytest.raises(StoppedError):
        evaluate(*untrained(), splits["coco"], tmp_path, stop_at(2 * BATCH))
    in_processes(splits["coco"], tmp_path, 2)
    assert (tmp_path / PREDICTIONS).read_bytes() == alone["coco"][1]


@pytest.mark.parametrize(
    ("spoil", "lost"),
    [
        (lambda text: text[:-1], 1),
        (lambda text: text[: len(text) - len(text.splitlines()[-1]) // 2], 1),
        (lambda text: text + b'{"batch": 3, "ima', 0),
        (lambda text: text + bytes(100), 0),
        (lambda text: b"", 2),
    ],
    ids=["without its end", "half", "begun", "zeros", "all"],
)
def test_a_torn_last_line_is_dropped(splits, alone, tmp_path, spoil, lost):
    with pytest.raises(StoppedError):
        evaluate(*untrained(), splits["coco"], tmp_path, stop_at(2 * BATCH))
    (part,) = (tmp_path / "detections").glob("*.jsonl")
    part.write_bytes(spoil(part.read_bytes()))
    model, cfg = untrained()
    seen = Seen(model)
    evaluate(model, cfg, splits["coco"], tmp_path)
    assert seen.images == IMAGES - (2 - lost) * BATCH
    assert (tmp_path / PREDICTIONS).read_bytes() == alone["coco"][1]


@pytest.mark.parametrize(
    ("words", "kind", "anew"),
    [
        ({"seed": 1}, "coco", True),
        ({"dataloader.test.batch_size": 3}, "coco", True),
        ({"test.soft_nms": "linear"}, "coco", True),
        ({}, "lvis", True),
        ({"dataloader.test.num_workers": 1, "train.max_iter": 2}, "coco", False),
    ],
    ids=["weights", "batches", "test", "data", "nothing that matters"],
)
def test_what_is_done_counts_for_the_same_evaluation_only(splits, tmp_path, words, kind, anew):
    with pytest.raises(StoppedError):
        evaluate(*untrained(), splits["coco"], tmp_path, stop_at(BATCH))
    model, cfg = untrained(**words)
    seen = Seen(model)
    evaluate(model, cfg, splits[kind], tmp_path)
    assert seen.images == (IMAGES if anew else IMAGES - BATCH)


def test_interrupted_while_it_scores_nothing_is_detected_again(splits, tmp_path, monkeypatch):
    def stop(*_):
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr("experiments.evaluation.matches.of_parts", stop)
        with pytest.raises(StoppedError):
            evaluate(*untrained(), splits["coco"], tmp_path)
    model, cfg = untrained()
    seen = Seen(model)
    evaluate(model, cfg, splits["coco"], tmp_path)
    assert seen.images == 0


def test_what_was_found_is_never_in_memory_as_a_whole(splits, alone, tmp_path, monkeypatch):
    """Nor are the annotations, while it detects: of LVIS they are 10 GB and one."""
    parts, of_parts = [], matches.of_parts

    def watched(*arguments):
        *others, read = arguments

        def each():
            for part in read():
                parts.append({detection["image_id"] for detection in part})
                yield part

        return of_parts(*others, each)

    monkeypatch.setattr(matches, "of_parts", watched)
    for module in ("evaluate", "matches"):
        name = f"experiments.evaluation.{module}.read_results"
        monkeypatch.setattr(name, lambda path: pytest.fail("all of it is read"))
    monkeypatch.setattr("experiments.evaluation.parts._TOGETHER", 1)
    result = evaluate(*untrained(), splits["lvis"], tmp_path)
    assert (result.box, result.mask) == (alone["lvis"][0].box, alone["lvis"][0].mask)
    assert (tmp_path / PREDICTIONS).read_bytes() == alone["lvis"][1]
    assert len(parts) >= IMAGES / BATCH
    assert max(map(len, parts)) <= BATCH
    assert sum(map(len, parts)) == len(set().union(*parts))


def test_seconds_are_over_all_resumes(splits, tmp_path):
    with pytest.raises(StoppedError):
        evaluate(*untrained(), splits["coco"], tmp_path, stop_at(BATCH))
    (part,) = (tmp_path / "detections").glob("*.jsonl")
    line = json.loads(part.read_text())
    part.write_text(json.dumps(line | {"seconds": 1000.0}) + "\n")
    assert 1000 < evaluate(*untrained(), splits["coco"], tmp_path).seconds < 1500


def test_a_detector_without_masks(splits, tmp_path):
    result = evaluate(*untrained("retinanet"), splits["coco"], tmp_path)
    assert tuple(result.box) == records.COCO_FIGURES
    assert result.mask == {}
    predictions = json.loads((tmp_path / PREDICTIONS).read_text())
    assert len(predictions) == 9 * IMAGES
    assert "segmentation" not in predictions[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_detector_that_finds_nothing(splits, tmp_path, kind):
    model, cfg = untrained()
    model.roi_heads.box_predictor.test_score_thresh = 2.0
    result = evaluate(model, cfg, splits[kind], tmp_path)
    assert result.box["AP"] == result.mask["AP"] == 0
    assert json.loads((tmp_path / PREDICTIONS).read_text()) == []


def test_detections_are_in_the_splits_order(splits, alone):
    predictions = json.loads(alone["coco"][1])
    images = [p["image_id"] for p in predictions]
    assert images == sorted(images)
    assert set(images) == set(range(1, IMAGES + 1))


class _Unreadable:
    def __call__(self, image):
        raise UserError(f"cannot read {image['file_name']}: it is truncated")


def test_an_image_that_cannot_be_read_is_one_line_from_a_worker_too(splits, tmp_path):
    model, cfg = untrained(**{"dataloader.test.num_workers": 1})
    cfg.dataloader.test.mapper = L(_Unreadable)()
    with pytest.raises(UserError, match=r"^cannot read .*/0.bmp: it is truncated$"):
        evaluate(model, cfg, splits["coco"], tmp_path)


# ---- Of a checkpoint ---------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """As a run leaves it: with its config."""
    model, cfg = untrained()
    folder = tmp_path / "run"
    folder.mkdir()
    LazyConfig.save(cfg, str(folder / "config.yaml"))
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    return folder / "model_final.pth"


def evaluated(checkpoint: Path, split: object, overrides: str = "") -> tuple[Path, str]:
    console = Console(record=True, width=200)
    out = checkpoint.parent.parent / "evaluations"
    folder = evaluate_checkpoint.evaluate_checkpoint(
        None, checkpoint, overrides, str(split), out, console
    )
    return folder, console.export_text()


def test_a_checkpoint_leaves_its_figures_and_a_record(splits, alone, checkpoint):
    folder, told = evaluated(checkpoint, splits["coco"])
    result = json.loads((folder / "result.json").read_text())
    assert result["box"] == alone["coco"][0].box
    assert result["images"] == IMAGES
    assert result["weights"] == str(checkpoint)
    assert len(result["weights_sha256"]) == 64
    record = records.read(folder / "record.json")
    assert record.mask == result["mask"]
    assert (folder / record.predictions).read_bytes() == alone["coco"][1]
    assert f"{IMAGES}/{IMAGES} images" in told
    assert f"on {IMAGES} images: {folder}" in told
    assert (folder.parent / "last").resolve() == folder


def test_done_before_it_takes_no_time(splits, checkpoint, monkeypatch):
    folder, _ = evaluated(checkpoint, splits["coco"])
    other, _ = evaluated(checkpoint, splits["coco"], "test.soft_nms=linear")
    monkeypatch.setattr(evaluate_checkpoint, "evaluate", None)
    again, told = evaluated(checkpoint, splits["coco"])
    assert again == folder != other
    assert "it was evaluated before" in told
    assert f"on {IMAGES} images: {folder}" in told
    assert (folder.parent / "last").resolve() == folder


def test_an_interrupted_checkpoint_goes_on(splits, alone, checkpoint, monkeypatch):
    def interrupted(model, cfg, split, folder, progress):
        return evaluate(model, cfg, split, folder, stop_at(2 * BATCH))

    with monkeypatch.context() as patch:
        patch.setattr(evaluate_checkpoint, "evaluate", interrupted)
        with pytest.raises(StoppedError):
            evaluated(checkpoint, splits["coco"])
    folder, told = evaluated(checkpoint, splits["coco"])
    assert f"{2 * BATCH}/{IMAGES} images" in told
    assert (folder / PREDICTIONS).read_bytes() == alone["coco"][1]


def test_two_commands_at_one_evaluation(splits, checkpoint):
    folder, _ = evaluated(checkpoint, splits["coco"])
    with open(folder / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another command is at this evaluation"):
            evaluated(checkpoint, splits["coco"])


def test_without_a_config(checkpoint):
    alone = checkpoint.rename(checkpoint.parent.parent / "model_final.pth")
    with pytest.raises(UserError, match=r"no config\.yaml beside .*: say what it is the"):
        evaluated(alone, "")


def test_a_test_set_gives_files_for_the_server(splits, checkpoint, tmp_path, monkeypatch):
    coco = json.loads(Path(splits["coco"].json_file).read_text())
    del coco["annotations"]
    root = tmp_path / "data" / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "test2017").symlink_to(splits["coco"].image_root)
    found = vars(MetadataCatalog.get("coco_2017_test-dev"))
    file = root / "annotations" / "image_info_test-dev2017.json"
    file.write_text(json.dumps(coco))
    monkeypatch.setitem(found, "json_file", str(file))
    monkeypatch.setitem(found, "image_root", str(root / "test2017"))
    folder, told = evaluated(checkpoint, "test-dev2017")
    assert f"no ground truth, no AP on {IMAGES} images" in told
    name = "detections_test-dev2017_model_final"
    files = [folder / f"{name}-{kind}_results.json" for kind in ("bbox", "segm")]
    boxes, masks = (json.loads(file.read_text()) for file in files)
    assert boxes[0].keys() == {"image_id", "category_id", "bbox", "score"}
    assert masks[0].keys() == {"image_id", "category_id", "segmentation", "score"}
    assert len(boxes) == len(masks) == 9 * IMAGES
    assert not (folder / "record.json").exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_splits_by_name(coco, monkeypatch, split):
    found = vars(MetadataCatalog.get(f"coco_2017_{split}"))
    file = f"{coco}/coco/annotations/instances_{split}2017.json"
    monkeypatch.setitem(found, "json_file", file)
    monkeypatch.setitem(found, "image_root", f"{coco}/coco/{split}2017")
    short = evaluate_checkpoint.find_split(f"{split}2017")
    assert short == evaluate_checkpoint.find_split(f"coco_2017_{split}")
    assert short == Split(file, f"{coco}/coco/{split}2017")


def test_splits_that_are_not_there(splits):
    assert evaluate_checkpoint.find_split(str(splits["lvis"])) == splits["lvis"]
    with pytest.raises(UserError, match=r"no test-dev2017: .* is missing. Set DETECTRON2_DATASETS"):
        evaluate_checkpoint.find_split("test-dev2017")
    with pytest.raises(UserError, match="unknown data set 'val2107': known are coco_2017_val"):
        evaluate_checkpoint.find_split("val2107")


def test_processes_of_one_command(tmp_path):
    """Each knows who it is; the first failure is the command's."""
    child = (
        "import os, pathlib, sys; rank, count = os.environ['RANK'], os.environ['WORLD_SIZE'];"
        f"pathlib.Path({str(tmp_path)!r}, rank).write_text(count);"
        "sys.exit(3 * int(rank))"
    )
    command = f"""
import sys
from experiments.launching.torchrun import in_processes
print(in_processes(1, ["-c", {child!r}]), in_processes(2, ["-c", {child!r}]))
"""
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "0 3\n"
    assert (tmp_path / "1").read_text() == "2"


def test_reach_is_counted_where_the_data_have_a_cue(splits, alone, tmp_path):
    content = json.loads(Path(splits["coco"].json_file).read_text())
    content["info"] = {"cue": {"window": 32}}
    for category in content["categories"]:
        category["cue"] = category["name"].split()[0]
    truth = tmp_path / "cue.json"
    truth.write_text(json.dumps(content))
    result = evaluate(*untrained(), Split(str(truth), splits["coco"].image_root), tmp_path)
    assert result.reach == reach.of_files(truth, tmp_path / PREDICTIONS)
    assert sum(annotated for annotated, _, _ in result.reach.values()) > 0
    assert all(alone[kind][0].reach is None for kind in KINDS)


# ---- Of a detector of today --------------------------------------------------------------------

EVA02 = "coco/cascade_mask_rcnn_eva02_b.py"
# Of its real config: an image of a window and a margin, and an encoder that a test can run.
SMALL_EVA02 = (
    "dataloader.image_size=320 model.backbone.img_size=320 model.backbone.depth=3 "
    "model.backbone.count=1 model.backbone.embed_dim=128 model.backbone.num_heads=2 "
    "model.backbone.mlp=swiglu(hidden=341,norm=true) model.roi_heads.num_classes=4 "
    "model.proposal_generator.post_nms_topk=[20,20] dataloader.test.num_workers=0"
)


@pytest.mark.slow
def test_a_checkpoint_of_eva02_det(splits, tmp_path):
    """In the exact layout of a released one, by the suite's config: what `make eval-coco` does,
    and what is published for a file of that name."""
    cfg = config.load(CONFIGS / EVA02)
    words = parse_overrides(SMALL_EVA02)
    set_words(cfg, words, "test")
    torch.manual_seed(0)
    model = instantiate(cfg.model).eval()
    weights = tmp_path / "released" / "eva02_B_coco_bsl.pth"
    weights.parent.mkdir()
    torch.save({"model": as_eva02_det(model), "iteration": 59_999}, weights)
    console = Console(record=True, width=200)
    folder = evaluate_checkpoint.evaluate_checkpoint(
        CONFIGS / EVA02, weights, SMALL_EVA02, str(splits["coco"]), tmp_path / "out", console
    )
    told = console.export_text()
    assert f"{weights} (eva02-det)" in told
    assert "missing" not in told
    assert "tables of rotary positions: computed for each size" in told
    result = json.loads((folder / "result.json").read_text())
    assert result["images"] == IMAGES
    direct = evaluate(model, cfg, splits["coco"], tmp_path / "direct")
    assert result["box"] == pytest.approx(direct.box, nan_ok=True)
    table = evaluation.table(folder)
    assert list(table[table[""] == "published"]["AP"]) == ["55.5", "47.1"]
    assert any(
        "eva02_B_coco_bsl.pth (Cascade Mask R-CNN, EVA-02 B): baaivision" in note
        for note in evaluation.notes(folder)
    )
    with pytest.raises(UserError, match=r"does not fit: its blocks \[0, 1\] have windows of 16"):
        evaluate_checkpoint.evaluate_checkpoint(
            CONFIGS / "coco/cascade_mask_rcnn_vit_b.py", weights,
            SMALL_EVA02 + " model.backbone.use_rel_pos=false", str(splits["coco"]),
            tmp_path / "out", console,
        )  # fmt: skip
