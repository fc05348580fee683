"""Processes that are killed: the same command goes on, and ends as if nothing had happened."""

import os
import random
import re
import signal
import time
from collections import Counter

import pytest
import torch

from experiments import records
from experiments.evaluation.evaluate import PREDICTIONS
from experiments.records import checkpoints

from .running import (
    ITERATIONS,
    Study,
    assert_same,
    children,
    gone,
    kill_session,
    ranks,
    wait_for,
)

pytestmark = pytest.mark.faults


def stamp(path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0


def kill_at(study: Study, moment: str, rng: random.Random) -> str:
    """Start the command and kill all of it about `moment`; returns where the kill landed."""
    scratch, predictions = study.run / ".checkpoint", study.run / PREDICTIONS
    before = (study.iterations, study.detected, stamp(scratch), stamp(predictions))
    logged = len(study.log)
    process = study.start()
    some = rng.randint(1, 2)

    def writing() -> bool:
        return stamp(study.run / ".checkpoint") not in (0, before[2])

    def evaluating() -> bool:
        return "detecting on" in study.log[logged:]

    def scoring() -> bool:
        return stamp(study.run / PREDICTIONS) not in (0, before[3])

    if moment == "training":
        wait_for(lambda: study.iterations >= before[0] + some or evaluating(), process)
        time.sleep(rng.uniform(0, 0.15))
    elif moment == "write":
        wait_for(lambda: study.iterations >= before[0] + some or evaluating(), process)
        wait_for(lambda: writing() or evaluating(), process)
        time.sleep(rng.uniform(0, 0.02))
    elif moment == "evaluation":
        wait_for(lambda: study.detected >= before[1] + some or scoring(), process)
        time.sleep(rng.uniform(0, 0.15))
    else:
        wait_for(scoring, process)
    kill_session(process)
    if writing():
        return "write"
    if scoring():
        return "scoring"
    return "evaluation" if evaluating() else "training"


# How many kills are meant for each moment; the order of the first two is drawn.
MOMENTS = {
    1: dict(training=10, write=8, evaluation=2, scoring=2),
    2: dict(training=3, write=2, evaluation=1, scoring=1),
}
KILLS = {1: 20, 2: 6}  # at least: the last moments are short, and a kill may come too late


@pytest.mark.parametrize("gpus", MOMENTS)
def test_killed_at_random_moments(small_set, tmp_path, undisturbed, gpus):
    rng = random.Random(gpus)
    counts = MOMENTS[gpus]
    moments = ["training"] * counts["training"] + ["write"] * counts["write"]
    rng.shuffle(moments)
    moments += ["evaluation"] * counts["evaluation"] + ["scoring"] * counts["scoring"]
    study = Study(small_set, tmp_path, gpus)
    landed = Counter()
    for moment in moments:
        where = kill_at(study, moment, rng)
        if (study.run / records.RECORD).exists():
            break
        landed[where] += 1
        kept = checkpoints._during_training(study.run)
        assert len(kept) <= 3  # the third: killed before the oldest was removed
        assert [checkpoints.wrong(path) for path in kept] == [""] * len(kept)
    print(f"kills: {dict(landed)}")
    assert landed.total() >= KILLS[gpus]
    assert landed["training"] >= counts["training"] // 2
    assert landed["write"] >= counts["write"] // 2
    study.finish()
    assert_same(study, undisturbed(gpus))
    record = records.read(study.run / records.RECORD)
    assert 0 < record.train_seconds < 600
    assert 0 < record.evaluate_seconds < 600
    left = {path.name for path in study.run.glob("*.pth*")}
    assert left == {"model_final.pth", "model_final.pth.sha256"}


@pytest.mark.parametrize("rank", [0, 1])
def test_one_rank_killed(small_set, tmp_path, undisturbed, rank):
    """The other does not wait for it for ever, and the command says what happened."""
    study = Study(small_set, tmp_path, 2)
    process = study.start()
    wait_for(lambda: study.iterations >= 5, process)
    os.kill(ranks(process.pid)[rank], signal.SIGKILL)
    assert process.wait(60) == 1  # gloo's own patience is half an hour
    (failed,) = re.findall(r"seed 0 failed: (.*)", study.output)
    assert failed == "its process was killed (memory?)"
    wait_for(gone(process.pid), seconds=15)
    assert_same(study.finish(), undisturbed(2))


def test_launcher_killed(small_set, tmp_path, undisturbed):
    """Its run goes on; the same command waits for it, and trains nothing."""
    study = Study(small_set, tmp_path)
    process = study.start()
    wait_for(lambda: study.iterations >= 3, process)
    process.kill()
    process.wait()
    assert len(ranks(process.pid)) == 1
    study.finish()
    assert study.log.count("Starting training from iteration") == 1
    wait_for(gone(process.pid), seconds=15)
    assert_same(study, undisturbed(1))


@pytest.mark.parametrize("gpus", [1, 2])
def test_two_launchers_at_once(small_set, tmp_path, undisturbed, gpus):
    study, other = (Study(small_set, tmp_path, gpus) for _ in range(2))
    processes = [study.start(), other.start()]
    assert [process.wait(300) for process in processes] == [0, 0], study.output
    assert study.log.count("Starting training from iteration") == 1
    assert_same(study, undisturbed(gpus))


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def test_torchrun_survives_a_killed_worker(small_set, tmp_path, undisturbed):
    study = Study(small_set, tmp_path)
    process = study.start(*TORCHRUN, "--max-restarts=1")
    wait_for(lambda: study.iterations >= 5, process)
    os.kill(children(process.pid)[1], signal.SIGKILL)
    assert process.wait(300) == 0, study.output
    assert study.log.count("Starting training from iteration") == 2
    assert_same(study, undisturbed(2))


def test_resumed_by_another_number_of_processes(small_set, tmp_path, undisturbed):
    study = Study(small_set, tmp_path)
    for gpus, until in ((1, ITERATIONS // 3), (2, 2 * ITERATIONS // 3)):
        study.gpus = gpus
        process = study.start()
        wait_for(lambda until=until: study.iterations >= until, process)
        kill_session(process)
    study.gpus = 1
    study.finish()
    assert study.log.count("Starting training from iteration") == 3
    expected = undisturbed(1)
    torch.testing.assert_close(study.weights, expected.weights, rtol=1e-3, atol=1e-5)


# RetinaNet has a running number of objects, the stem has batch norm, and now and then a step has to
# be left out.
FLAKY = """
import torch

from backbones import STEMS
from backbones.stems import ConvStem
from experiments.studies import Study, Variant


@STEMS.register("flaky")
class Flaky(ConvStem):
    def forward(self, x):
        flaw = float("nan") if self.training and torch.rand(()) < 0.1 else 1.0
        return super().forward(x) * flaw


study = Study(
    name="flaky",
    question="What is in a checkpoint?",
    detector="retinanet",
    variants=(Variant("flaky", {"model.backbone.stem": "flaky"}),),
)
"""


def test_everything_that_changes_in_training_survives(small_set, tmp_path):
    (tmp_path / "flaky.py").write_text(FLAKY)
    expected, study = (
        Study(
            small_set,
            tmp_path / name,
            study=str(tmp_path / "flaky.py"),
            variant="flaky",
            words={"train.ema": 0.9, "train.may_skip": ITERATIONS},
        )
        for name in ("undisturbed", "killed")
    )
    expected.finish()
    for until in (ITERATIONS // 3, 2 * ITERATIONS // 3):
        process = study.start()
        wait_for(lambda until=until: study.iterations >= until, process)
        kill_session(process)
    study.finish()
    assert study.log.count("Starting training from iteration") == 3
    assert_same(study, expected)
    left_out, again = (
        dict(re.findall(r"iteration (\d+): .* step left out, (\d+) of", run.log))
        for run in (expected, study)
    )
    assert again == left_out
    assert list(map(int, left_out.values())) == list(range(1, len(left_out) + 1))
    assert len(left_out) > 2
