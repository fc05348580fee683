"""Pre-training as runs: images, recipes, their order, exact resume, and detectors behind them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from PIL import Image

from experiments import records
from experiments.data import pretraining_images as images
from experiments.errors import UserError
from experiments.jobs import pretraining_runs
from experiments.jobs.pretraining import effective_rank, validate
from experiments.recipe import config, identity
from experiments.recipe.words import check_pretraining_words
from experiments.records import PretrainingRecord
from experiments.training import training_loop
from tests.conftest import ROOT
from tests.experiments.test_cli import assert_told, experiments, own

SMALL = {
    "dataloader.train.total_batch_size": 4,
    "dataloader.train.micro_batch_size": 2,
    "train.max_iter": 4,
    "train.checkpoint_period": 2,
    "train.amp": False,
}


def write_images(root: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.RandomState(i).randint(0, 256, (40, 50, 3), np.uint8)
        Image.fromarray(pixels).save(root / name)
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    names = [f"{split}/{c}/{i}.bmp" for split in ("train", "val") for c in "ab" for i in range(3)]
    return write_images(tmp_path_factory.mktemp("images"), *names)


class TestImages:
    def test_categories_are_folders(self, folder):
        found = images.prepare("mini", str(folder))
        assert found.counts == (6, 6)
        assert found.categories == ("a", "b")
        assert [e["label"] for e in found.entries("train")] == [0, 0, 0, 1, 1, 1]
        assert found.entries("val")[0]["image_id"] == "a/0.bmp"

    def test_the_list_of_files_is_written_once(self, folder, tmp_path, monkeypatch):
        found = images.prepare("mini", str(folder))
        expected = {split: found.entries(split) for split in ("train", "val")}
        found.write_list(tmp_path / "files.json")
        monkeypatch.setattr(images, "_files", lambda root: pytest.fail("looked for again"))
        found.write_list(tmp_path / "files.json")
        for split, entries in expected.items():
            assert found.entries(split, tmp_path / "files.json") == entries

    def test_any_folder_without_labels(self, tmp_path):
        write_images(tmp_path, "1.png", "deep/er/2.JPG", "deep/3.bmp")
        (tmp_path / "notes.txt").write_text("no image")
        found = images.prepare("mini", str(tmp_path))
        assert found.counts == (3, 0)
        assert found.categories == ()
        assert {e["label"] for e in found.entries("train")} == {-1}

    def test_a_changed_file_is_other_data(self, folder, tmp_path):
        other = shutil.copytree(folder, tmp_path / "other")
        assert (
            images.prepare("mini", str(other)).digest == images.prepare("mini", str(folder)).digest
        )
        write_images(other, "train/b/new.bmp")
        assert (
            images.prepare("mini", str(other)).digest != images.prepare("mini", str(folder)).digest
        )

    @pytest.mark.parametrize(
        ("names", "told"),
        [
            ([], "no images in"),
            (["train/a/1.bmp", "train/b/1.bmp", "val/c/1.bmp"], "category 'c' that"),
            (["train/a/1.bmp", "train/b/1.bmp", "val/1.bmp"], "images lie directly in"),
        ],
    )
    def test_what_is_wrong_is_told(self, tmp_path, names, told):
        write_images(tmp_path, *names)
        with pytest.raises(UserError, match=told):
            images.prepare("mini", str(tmp_path))

    def test_no_imagenet(self, tmp_path, monkeypatch):
        monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
        with pytest.raises(UserError, match=f"no ImageNet at {tmp_path}/imagenet"):
            images.prepare("coco")


class TestRecipes:
    def plan(self, word, folder, overrides=SMALL, **words) -> list[pretraining_runs.PretrainingRun]:
        data = images.prepare("mini", str(folder))
        return pretraining_runs.plan(
            word, "mini", "vit-mini", data, Path("runs"), overrides, **words
        )

    def test_one_that_starts_from_another_comes_behind_it(self, folder):
        first, second = self.plan("recipe:flip-tuned", folder)
        assert (first.recipe, second.recipe) == ("flip", "flip-tuned")
        assert second.cfg.train.init_weights == pretraining_runs.word_of(first)
        assert pretraining_runs.by_depth([first, second]) == [[first], [second]]
        assert pretraining_runs.needed([first, second], [pretraining_runs.word_of(second)]) == [
            first,
            second,
        ]
        assert pretraining_runs.needed([first, second], [pretraining_runs.word_of(first)]) == [
            first
        ]
        assert pretraining_runs.needed([first, second], []) == []

    def test_a_change_in_the_first_is_another_second(self, folder):
        _, second = self.plan("recipe:flip-tuned", folder)
        _, other = self.plan("recipe:flip-tuned", folder, SMALL | {"optimizer.lr": 1e-4})
        assert other.fingerprint != second.fingerprint

    def test_the_detectors_words_are_shared(self, folder):
        backbone = config.load(config.base_path("mini", "vit-mini")).model.backbone
        (plain,) = self.plan("recipe:mae", folder, backbone=backbone)
        backbone.update(activation="relu6", stem="patchify", window_size=8)
        (run,) = self.plan("recipe:mae", folder, backbone=backbone)
        assert (run.cfg.model.encoder.activation, run.cfg.model.encoder.stem) == (
            "relu6",
            "patchify",
        )
        assert run.fingerprint != plain.fingerprint
        backbone.window_size = 2  # of no weight, and of no block that is all global
        (same,) = self.plan("recipe:mae", folder, backbone=backbone)
        assert same.fingerprint == run.fingerprint

    @pytest.mark.parametrize(
        ("recipe", "size"),
        [
            ("mae", "vit-mini"),
            ("mae", "vit-b"),
            ("sup", "vit-l"),
            ("mae", "vit-h"),
            ("simple", "vit-s"),
        ],
    )
    def test_alone_it_is_the_same_run_as_for_a_detector(self, recipe, size):
        scale = "mini" if size == "vit-mini" else "coco"
        backbone = config.load(config.base_path(scale, size)).model.backbone
        alone, behind = (pretraining_runs.resolve(recipe, size, {}, b) for b in (None, backbone))
        assert identity.fingerprint(alone, "data") == identity.fingerprint(behind, "data")

    def test_a_recipe_for_another_encoder_is_refused(self):
        backbone = config.load(config.base_path("coco", "vit-b")).model.backbone
        with pytest.raises(UserError, match=r"'conv-stem' is for model\.backbone\.stem=conv"):
            pretraining_runs.resolve("conv-stem", "vit-s", {}, backbone)
        backbone.stem = "conv"
        assert (
            pretraining_runs.resolve("conv-stem", "vit-s", {}, backbone).model.encoder.stem
            == "conv"
        )

    def test_detectors_are_told_apart_by_their_pre_training(self, folder):
        def detector(overrides):
            cfg = config.load(config.base_path("mini", "vit-mini"))
            cfg.train.init_weights = "recipe:mae"
            data = images.prepare("mini", str(folder))
            pretraining_runs.plan_for([cfg], "mini", lambda: data, Path("runs"), overrides)
            return identity.fingerprint(cfg, "data")

        assert detector(SMALL) == detector(SMALL)
        assert detector(SMALL) != detector(SMALL | {"train.max_iter": 5})

    def test_images_are_looked_through_once_for_all_detectors(self, folder):
        cfgs = [config.load(config.base_path("mini", "vit-mini")) for _ in range(3)]
        for cfg, word in zip(cfgs, ("recipe:mae", "none", "recipe:sup"), strict=True):
            cfg.train.init_weights = word
        found = []

        def prepare():
            found.append(images.prepare("mini", str(folder)))
            return found[0]

        planned = pretraining_runs.plan_for(cfgs, "mini", prepare, Path("runs"), SMALL)
        assert [run.recipe for run in planned] == ["mae", "sup"]
        assert len(found) == 1
        pretraining_runs.plan_for(cfgs[1:2], "mini", prepare, Path("runs"), SMALL)
        assert len(found) == 1

    @pytest.mark.parametrize("names", [["1.bmp"], ["a/1.bmp", "2.bmp"], ["a/1.bmp", "a/2.bmp"]])
    def test_labels_are_of_two_categories_and_of_all_images(self, tmp_path, names):
        write_images(tmp_path, *names)
        with pytest.raises(UserError, match="'sup' needs labels: each image of"):
            self.plan("recipe:sup", tmp_path)

    def test_a_run_is_the_same_on_every_machine(self, folder, monkeypatch):
        marks = set()
        for there in (False, True):
            monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda there=there: there)
            monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda there=there: there)
            words = SMALL | {"train.amp": True}
            marks.add(self.plan("recipe:flip-tuned", folder, words)[-1].fingerprint)
        assert len(marks) == 1

    @pytest.mark.parametrize(
        ("recipe", "size", "overrides", "told"),
        [
            ("mea", "vit-mini", {}, "did you mean 'mae'"),
            ("mae", "vit-mimi", {}, "did you mean 'vit-mini'"),
            ("mae", "vit-mini", {"train.max_itre": 1}, "did you mean 'train.max_iter'"),
            ("mae", "vit-mini", {"train.parallel": "fsdp"}, "ddp does"),
            ("mae", "vit-mini", {"model.mask_ratio": 0.999}, "mask_ratio"),
            ("sup", "vit-mini", {"train.seed": 5}, "SEEDS="),
            ("sup", "vit-mini", {"model.num_classes": 7}, "number of categories"),
            ("sup", "vit-mini", {"train.init_weights": "recipe:mae"}, "is said in its file"),
            ("mae", "vit-mini", {"dataloader.image_size": 64}, "set both"),
            (
                "sup",
                "vit-b",
                {"dataloader.image_size": 384, "model.encoder.img_size": 384},
                "black",
            ),
        ],
    )
    def test_what_is_wrong_is_told(self, recipe, size, overrides, told):
        with pytest.raises(UserError, match=told):
            pretraining_runs.resolve(recipe, size, overrides)


def state_of(run: pretraining_runs.PretrainingRun) -> dict[str, torch.Tensor]:
    return torch.load(Path(run.folder) / pretraining_runs.ENCODER)["model"]


@pytest.mark.parametrize("recipe", ["mae", "sup"])
def test_a_resumed_one_ends_as_if_undisturbed(folder, tmp_path, recipe, monkeypatch):
    threads = torch.get_num_threads()
    data = images.prepare("mini", str(folder))
    one, two = (
        pretraining_runs.plan(f"recipe:{recipe}", "mini", "vit-mini", data, tmp_path / name, SMALL)[
            -1
        ]
        for name in ("whole", "cut")
    )
    one()

    step = training_loop.Trainer.run_step

    def cut(trainer):
        if trainer.iter == 3:
            raise KeyboardInterrupt
        step(trainer)

    monkeypatch.setattr(training_loop.Trainer, "run_step", cut)
    with pytest.raises(KeyboardInterrupt):
        two()
    monkeypatch.setattr(training_loop.Trainer, "run_step", step)
    assert not two.done
    two()
    torch.set_num_threads(threads)
    first, second = state_of(one), state_of(two)
    assert all(torch.equal(first[k], second[k]) for k in first)
    kept = [records.read_json(Path(run.folder) / PretrainingRecord.FILE) for run in (one, two)]
    assert kept[0]["figures"] == kept[1]["figures"]
    assert kept[0]["data"]["images"] == [6, 6]
    assert 1 < kept[0]["figures"]["effective_rank"] < 64
    assert one.done
    assert two.done


def test_without_validation_images_there_are_no_figures(tmp_path):
    threads = torch.get_num_threads()
    root = write_images(tmp_path / "images", "train/a/1.bmp", "train/b/1.bmp")
    (root / "val").mkdir()
    data = images.prepare("mini", str(root))
    words = SMALL | {"train.max_iter": 1}
    (run,) = pretraining_runs.plan("recipe:sup", "mini", "vit-mini", data, tmp_path / "runs", words)
    run()
    torch.set_num_threads(threads)
    assert records.read_json(Path(run.folder) / PretrainingRecord.FILE)["figures"] == {}
    # What others start from is made again if it is gone, from the weights that were trained.
    (Path(run.folder) / pretraining_runs.ENCODER).unlink()
    assert not run.done
    run()
    torch.set_num_threads(threads)
    assert run.done


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_effective_rank(rank):
    directions = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64)).Q[:rank]
    x_MC = torch.eye(rank, dtype=torch.float64).repeat(5, 1) @ directions
    assert effective_rank(x_MC.T @ x_MC) == pytest.approx(rank)
    # By its definition, from the vectors themselves.
    x_MC = torch.randn(40, 16, dtype=torch.float64) @ torch.diag(torch.arange(16.0).double())
    shares = torch.linalg.svdvals(x_MC)
    shares = shares[shares > 1e-9] / shares.sum()
    expected = float((-shares * shares.log()).sum().exp())
    assert effective_rank(x_MC.T @ x_MC) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_a_study_pre_trains_once_and_starts_from_it(folder, small_set, tmp_path):
    own_words = " ".join(f"pretraining.{key}={value}" for key, value in SMALL.items())
    overrides = f"train.max_iter=1 train.amp=false {own_words}"
    words = ["run", "pretraining", "--variants", "mae", "--seeds", "2"]
    words += ["--runs", tmp_path, "--images", folder, *own(small_set), "--overrides", overrides]
    done = experiments(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "before them 1 pre-trainings" in done.stdout
    (path,) = tmp_path.rglob(PretrainingRecord.FILE)
    word = config.RECIPE + path.parent.name
    (study,) = (tmp_path / "mini").glob("pretraining@*")
    logs = [p.read_text() for p in study.glob("*/log.txt")]
    assert sum(f"{path.parent / pretraining_runs.ENCODER} (detectron2)" in log for log in logs) == 2
    table = records.load(study)
    assert {c["train"]["init_weights"] for c in table["config"]} == {word}
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.json")}
    again = experiments(*words)
    assert "2 runs, 2 of them done" in again.stdout
    assert {p: p.stat().st_mtime_ns for p in stamps if p.name != "study.json"} == {
        p: t for p, t in stamps.items() if p.name != "study.json"
    }


@pytest.mark.slow
def test_torchrun_pre_trains_and_trains_in_its_processes(folder, small_set, tmp_path):
    own_words = " ".join(f"pretraining.{key}={value}" for key, value in SMALL.items())
    halves = "dataloader.train.micro_batch_size=4"
    torchrun = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run"]
    command = [*torchrun, "--standalone", "--nproc-per-node=2", "-m", "experiments"]
    command += ["run", "pretraining", "--variants", "mae", "--seeds", "1", "--runs", str(tmp_path)]
    command += ["--images", str(folder), *own(small_set)]
    own_words += " pretraining.dataloader.test.batch_size=2"
    command += ["--overrides", f"train.max_iter=1 train.amp=false {halves} {own_words}"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.rglob(PretrainingRecord.FILE)
    # Both processes validate; what they find together is what one finds.
    cfg = config.load(path.parent / "config.yaml", config.PRETRAINING_PARTS)
    model = instantiate(cfg.model)
    state = torch.load(path.parent / "model_final.pth", weights_only=True)
    model.load_state_dict(state["model"])
    entries = images.prepare("mini", str(folder)).entries("val")
    assert validate(model, cfg, entries) == pytest.approx(records.read_json(path)["figures"])
    assert len(list((path.parent).glob("files.json"))) == 1
    (detector,) = tmp_path.rglob(records.RECORD)
    assert [records.read_json(file)["processes"] for file in (path, detector)] == [2, 2]


def test_pre_training_on_a_cpu_for_days_must_be_wanted(folder, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("a GPU is here: it would begin")
    done = experiments("pretrain", "mae", "--scale", "coco", "--runs", tmp_path, "--images", folder)
    assert done.returncode == 2
    told = done.stdout.splitlines()[-1]
    assert re.match(r"error: all runs will take about [\d,]+ days on this CPU.*: say YES=1", told)


def test_words_of_a_pre_training_that_is_not_there(small_set, tmp_path):
    words = ["run", "count", "--images", "somewhere", "--runs", tmp_path, *own(small_set)]
    assert_told(experiments(*words), "IMAGES has no effect", "no row starts from a recipe")
    cfg = config.load(config.base_path("mini", "vit-mini"))
    with pytest.raises(UserError, match=r"pretraining\.train\.seed has no effect"):
        check_pretraining_words([cfg], {"train.seed": 3})
    cfg.train.init_weights = "recipe:mae"
    check_pretraining_words([cfg], {"train.max_iter": 3}, "somewhere")


def test_the_command_tells_what_is_wrong(tmp_path):
    done = experiments("pretrain", "mea", "--runs", tmp_path)
    assert_told(done, "unknown recipe 'mea'", "did you mean 'mae'")
    done = experiments("pretrain", "mae", "--runs", tmp_path, "--images", tmp_path / "none")
    assert_told(done, f"no folder at {tmp_path}/none")
