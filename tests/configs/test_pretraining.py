"""Pre-training recipes: published lengths, what they build, and that each one starts."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from PIL import Image

from experiments.data import pretraining_images as images
from experiments.jobs import pretraining, pretraining_runs
from tests.conftest import ROOT
from tests.experiments.test_cli import assert_told, experiments

# Epochs of ImageNet-1k, images of a step, epochs of warmup, learning rate: as published.
PUBLISHED = {
    "mae-vit-b": (1600, 4096, 40, 1.5e-4 * 16),
    "mae-vit-l": (1600, 4096, 40, 1.5e-4 * 16),
    "mae-vit-h": (1600, 4096, 40, 1.5e-4 * 16),
    "sup-vit-b": (300, 4096, 20, 1e-4 * 16),
    "sup-vit-l": (200, 4096, 20, 1e-4 * 16),
    "simple-vit-s": (90, 1024, 10_000 * 1024 / 1_281_167, 1e-3),
    "conv-stem-vit-s": (400, 4096, 20, 1e-4 * 16),
    "flip-vit-b": (300, 4096, 20, 1e-4 * 16),
    "flip-tuned-vit-b": (3, 4096, 0.6, 1e-6 * 16),
    "face-vit-s": (40, 4096, 4, 1e-3),
}
MINI = ["mae", "sup", "flip", "flip-tuned"]
# MACs of a ViT's forward pass on 196 tokens and a cls token, in 1e9 (torchvision's documentation).
FORWARD = {"sup-vit-b": 17.56, "sup-vit-l": 61.55}


def split(name):
    recipe, _, size = name.rpartition("-vit-")
    return recipe, f"vit-{size}"


def test_every_recipe_is_tested():
    assert set(pretraining_runs.recipes()) == {
        *PUBLISHED,
        *(f"{recipe}-vit-mini" for recipe in MINI),
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_length(name):
    cfg = pretraining_runs.resolve(*split(name), {})
    epochs, batch, warmup, lr = PUBLISHED[name]
    assert cfg.dataloader.train.total_batch_size == batch
    assert abs(cfg.train.max_iter * batch - epochs * 1_281_167) <= batch / 2
    assert abs(cfg.schedule.warmup_iters * batch - warmup * 1_281_167) <= batch / 2
    assert cfg.optimizer.lr == pytest.approx(lr)


@pytest.mark.parametrize("recipe", MINI)
def test_mini_recipes_are_in_float32_on_every_machine(recipe):
    assert not pretraining_runs.resolve(recipe, "vit-mini", {}).train.amp


@pytest.mark.parametrize("name", FORWARD)
def test_a_training_pass_costs_three_forward_passes(name):
    macs = pretraining.step_macs(pretraining_runs.resolve(*split(name), {}))
    assert macs == pytest.approx(3e9 * FORWARD[name], rel=0.01)


@pytest.mark.parametrize("recipe", sorted({split(name)[0] for name in PUBLISHED}))
def test_costs_in_the_documentation(recipe):
    sizes = [size for name in PUBLISHED for word, size in [split(name)] if word == recipe]
    cfgs = [pretraining_runs.resolve(recipe, size, {}) for size in sizes]
    macs = [pretraining.step_macs(cfg) for cfg in cfgs]
    steps = [cfg.train.max_iter * cfg.dataloader.train.total_batch_size for cfg in cfgs]
    page = (ROOT / "docs" / "pretraining.md").read_text()
    (row,) = (line for line in page.splitlines() if line.startswith(f"| `{recipe}` |"))
    each = ", ".join(f"{m / 1e9:.1f}" for m in macs)
    total = ", ".join(f"{m * n:.1e}".replace("+", "") for m, n in zip(macs, steps, strict=True))
    assert row.startswith(f"| `{recipe}` | {', '.join(sizes)} |")
    assert row.endswith(f"| {each} G | {total} |")


@pytest.mark.parametrize(
    ("recipe", "size", "degrees"), [("sup", "vit-b", 27), ("simple", "vit-s", 30)]
)
def test_randaugment_is_as_strong_as_published(recipe, size, degrees):
    """Magnitudes count to 10, as in timm and big_vision; of rotations 10 is 30 degrees."""
    cfg = pretraining_runs.resolve(recipe, size, {})
    augment = instantiate(cfg.dataloader.train.mapper.transforms)[-1]
    magnitudes, _ = augment._AUGMENTATION_SPACE["Rotate"]
    assert magnitudes(augment.num_magnitude_bins, 224, 224)[augment.magnitude] == degrees


def test_half_of_the_tokens_costs_half():
    half, whole = (
        pretraining.step_macs(pretraining_runs.resolve(recipe, "vit-b", {}))
        for recipe in ("flip", "flip-tuned")
    )
    # A little less, as attention grows with the square; the patch embedding too reads half.
    assert 0.47 < half / whole < 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four images for training in two categories, two for validation, in ImageNet's layout."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split_name, count in (("train", 2), ("val", 1)):
        for category in ("a", "b"):
            (root / split_name / category).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (150, 140, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split_name / category / f"{i}.png")
    return root


def start(name, folder, runs_root):
    """The last record of a recipe's chain, of one step each."""
    recipe, size = split(name)
    words = {
        "train.max_iter": 1,
        "train.threads": 1,
        "dataloader.train.total_batch_size": 4,
        "dataloader.train.num_workers": 0,
        "dataloader.test.num_workers": 0,
    }
    data = images.prepare("mini", str(folder))
    for run in pretraining_runs.plan(f"recipe:{recipe}", "mini", size, data, runs_root, words):
        record = json.loads(Path(run()).read_text())
    weights = torch.load(Path(run.folder) / pretraining_runs.ENCODER, weights_only=True)["model"]
    assert all(torch.isfinite(w).all() for w in weights.values())
    assert record["train_macs"] > 0
    return record


@pytest.mark.parametrize("recipe", MINI)
def test_mini_recipes_start(recipe, folder, tmp_path):
    record = start(f"{recipe}-vit-mini", folder, tmp_path)
    own = {"loss_pixels"} if recipe == "mae" else {"loss_cls", "accuracy"}
    assert set(record["figures"]) == {*own, "effective_rank"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.endswith("vit-s")])
def test_small_recipes_start(name, folder, tmp_path):
    assert start(name, folder, tmp_path)["figures"]["loss_cls"] > 0


def test_without_imagenet_the_command_says_so(tmp_path):
    env = os.environ | {"DETECTRON2_DATASETS": str(tmp_path)}
    words = ["pretrain", "mae", "--scale", "coco", "--size", "vit-b", "--runs", tmp_path / "runs"]
    assert_told(experiments(*words, **env), f"no ImageNet at {tmp_path / 'imagenet'}", "IMAGES=")
