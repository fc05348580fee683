"""Processes that are told to stop: they do, in seconds, and the same command goes on."""

import os
import signal
import subprocess
import time

import pytest

from .running import Study, assert_same, children, gone, ranks, wait_for
from .test_kills import TORCHRUN

pytestmark = pytest.mark.faults

# Signal; whether the whole session gets it, as from a terminal, or the command alone; when; and
# with how many processes it is tried.
STOPS = {
    "Ctrl-C in training": (signal.SIGINT, True, "training", {1, 2}),
    "SIGINT to the command": (signal.SIGINT, False, "training", {1}),
    "SIGTERM to the command": (signal.SIGTERM, False, "training", {1, 2}),
    "SIGTERM to all": (signal.SIGTERM, True, "training", {1}),
    "terminal closed": (signal.SIGHUP, True, "training", {1, 2}),
    "Ctrl-C in evaluation": (signal.SIGINT, True, "evaluation", {1, 2}),
    "SIGTERM in evaluation": (signal.SIGTERM, False, "evaluation", {1}),
}


@pytest.mark.parametrize("gpus", [1, 2])
def test_stops_in_seconds_and_goes_on(small_set, tmp_path, undisturbed, gpus):
    """One run, stopped in every way, one after the other."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored under nohup, by what is started too
    study = Study(small_set, tmp_path, gpus)
    for name, (number, everyone, moment, tried) in STOPS.items():
        if gpus not in tried:
            continue
        trained, detected = study.iterations, study.detected
        process = study.start()
        if moment == "training":
            wait_for(lambda trained=trained: study.iterations >= trained + 2, process)
        else:
            wait_for(lambda detected=detected: study.detected >= detected + 2, process)
        told = time.monotonic()
        (os.killpg if everyone else os.kill)(process.pid, number)
        code = process.wait(15)
        wait_for(gone(process.pid), seconds=15 - (time.monotonic() - told))
        print(f"{gpus} process(es), {name}: {time.monotonic() - told:.1f} s")
        if number == signal.SIGHUP:  # nobody is left to be told
            assert code == -signal.SIGHUP, name
        else:
            assert code == 130, f"{name}: {study.output}"
            assert "the same command goes on from the last checkpoints" in study.output, name
            assert "Traceback" not in study.output, name
        assert not (study.run / "record.json").exists(), name
    study.finish()
    assert_same(study, undisturbed(gpus))
    # No iteration of training is done twice over but the one that each stop was in.
    assert study.iterations <= undisturbed(gpus).iterations + len(STOPS)


@pytest.mark.parametrize("gpus", [1, 2])
def test_preempted_run_hands_over_and_loses_nothing(small_set, tmp_path, undisturbed, gpus):
    """SIGUSR2, as submitit has it from Slurm; its local controller starts the run again."""
    study = Study(small_set, tmp_path, gpus, words={"train.checkpoint_period": 1000})
    process = study.start()
    told = set(range(gpus))
    for starts in (1, 2):
        wait_for(
            lambda starts=starts: (
                study.log.count("Starting training from") == starts
                and study.iterations >= 4 * starts
            ),
            process,
        )
        for rank, pid in ranks(process.pid).items():
            if rank in told:
                os.kill(pid, signal.SIGUSR2)
        told = {gpus - 1}  # one that knows is enough
    wait_for(lambda: study.detected >= 2, process)
    os.kill(ranks(process.pid)[0], signal.SIGUSR2)
    assert process.wait(300) == 0, study.output
    assert study.log.count("Told to stop: checkpoint written after iteration") == 2
    assert study.log.count("Starting training from iteration") == 3
    assert study.log.count("detecting on 10 images, on 0 of them it was done before") == 1
    assert study.log.count("detecting on 10 images") == 2
    assert study.iterations == undisturbed(gpus).iterations  # none was done again
    assert_same(study, undisturbed(gpus))
    wait_for(gone(process.pid), seconds=15)


def test_torchrun_gives_the_weights_of_gpus(small_set, tmp_path, undisturbed):
    """Stopped by Ctrl-C, and by SIGUSR2 to one of its processes, which is no success either."""
    study = Study(small_set, tmp_path)
    process = study.start(*TORCHRUN)
    wait_for(lambda: study.iterations >= 3, process)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(30) != 0
    # torchrun's processes may have sessions of their own.
    wait_for(lambda: subprocess.run(["pgrep", "-f", str(tmp_path)]).returncode == 1, seconds=15)
    process = study.start(*TORCHRUN)
    wait_for(lambda: study.iterations >= 6, process)
    os.kill(children(process.pid)[1], signal.SIGUSR2)
    assert process.wait(30) != 0
    assert "Told to stop: checkpoint written after iteration" in study.log
    study.finish(*TORCHRUN)
    assert_same(study, undisturbed(2))
