"""Training a part of an encoder: the rest stays as it is to the bit, in whatever way it is run."""

import json
from pathlib import Path

import pytest
import torch

from experiments.jobs.detection import fit_run
from experiments.records import checkpoints
from tests.experiments.training.test_distributed import call, planned, trained

STEPS = {"train.max_iter": 4, "train.checkpoint_period": 2}
# Batch norm and drop path would go on in an encoder whose learning rate is 0.
ALIKE = {"model.backbone.stem": "patchify", "train.init_weights": "none"}


def run_of(small_set, root: Path, words: dict, row: str = "global"):
    run = planned(small_set, root, "global-vs-conv", row, STEPS | words)
    Path(run.folder).mkdir(parents=True)
    return run


def fitted(small_set, root: Path, words: dict) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Weights and lines of metrics."""
    run = run_of(small_set, root, words)
    fit_run(run.cfg, run)
    return trained(root)


def losses(lines: list[dict]) -> list[dict]:
    return [{k: v for k, v in line.items() if "loss" in k} for line in lines]


def assert_same(some: dict, other: dict, among: str = "") -> None:
    assert some.keys() == other.keys()
    for name in some:
        if name.startswith(among):
            assert torch.equal(some[name], other[name]), name


def test_frozen_is_an_encoder_without_learning_rate(small_set, tmp_path):
    words = ALIKE | {"train.clip_grad_norm": None}  # a norm of the others' gradients alone
    still = {"param_groups.layer_decay": 0.0}  # to the power of at least one, in the encoder
    expected, curve = fitted(small_set, tmp_path / "still", words | still)
    found, own_curve = fitted(small_set, tmp_path / "frozen", words | {"train.tuning": "frozen"})
    assert losses(own_curve) == losses(curve)
    assert len(losses(curve)[0]) > 4
    assert_same(found, expected)
    assert not any(line.get("lr/x0") == 0 for line in own_curve)


@pytest.mark.parametrize("tuning", ["frozen", "last:2"])
def test_it_goes_on_where_it_stopped_and_the_rest_never_changes(small_set, tmp_path, tuning):
    words = {"train.tuning": tuning, "model.backbone.drop_path_rate": 0.3, "train.ema": 0.9}
    run = run_of(small_set, tmp_path, words)
    fit_run(run.cfg, run)
    whole, _ = trained(tmp_path)
    first = checkpoints.read(Path(run.folder) / "model_0000001.pth")
    (Path(run.folder) / "model_final.pth").unlink()
    fit_run(run.cfg, run)
    assert_same(trained(tmp_path)[0], whole)
    frozen = ["patch_embed.", "pos_embed", *(f"blocks.{i}." for i in range(4))]
    frozen += ["blocks."] * (tuning == "frozen")
    for name in frozen:  # with batch norm's statistics
        assert_same(first["model"], whole, f"backbone.net.{name}")
    moved = {name for name in whole if not torch.equal(first["model"][name], whole[name])}
    assert any("simfp" in name for name in moved)
    assert any("blocks.5." in name for name in moved) is (tuning != "frozen")
    trains = {name for name in first["optimizer"]["state"] if name.startswith("backbone.net")}
    assert {name.split(".")[3] for name in trains} == ({"4", "5"} if trains else set())
    assert bool(trains) is (tuning != "frozen")


@pytest.mark.slow
def test_several_processes(small_set, tmp_path):
    """Gradients that never come are not waited for, whatever holds the weights."""
    words = STEPS | {"dataloader.train.micro_batch_size": 4, "train.tuning": "last:2"}
    expected, curve = fitted(small_set, tmp_path / "one", words)
    jobs = [
        (small_set, str(tmp_path / how), "global-vs-conv", "global", words | more)
        for how, more in (
            ("ddp", {}),
            ("fsdp", {"train.parallel": "fsdp"}),
            ("frozen", {"train.tuning": "frozen"}),
        )
    ]
    call(2, jobs)
    for how in ("ddp", "fsdp"):
        found, own_curve = trained(tmp_path / how)
        for line, own in zip(losses(curve)[:2], losses(own_curve)[:2], strict=True):
            assert own == pytest.approx(line, rel=1e-4, abs=1e-6)
        assert_same(found, expected, "backbone.net.blocks.3.")
    found, own_curve = trained(tmp_path / "frozen")
    assert_same(found, expected, "backbone.net.blocks.3.")
    assert json.loads(json.dumps(own_curve))[-1]["iteration"] == 3
