"""One run in several processes: the same curve, the same weights, and the same checkpoints."""

import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from fvcore.common.param_scheduler import ConstantParamScheduler

from experiments import studies
from experiments.data import catalog
from experiments.errors import UserError
from experiments.jobs import runs
from experiments.recipe import checks
from experiments.training import distributed
from experiments.training.hooks import Checkpoints, Meter
from experiments.training.training_loop import Trainer, parallel
from tests.conftest import ROOT

ITERATIONS = 5
# Name of a spread: processes, images of a micro batch (of 8 a step), how weights are held.
SPREADS = {
    "1 process x 2": (1, 4, "ddp"),
    "2 processes": (2, 4, "ddp"),
    "1 process x 4": (1, 2, "ddp"),
    "2 processes x 2": (2, 2, "ddp"),
    "2 processes x 2, fsdp": (2, 2, "fsdp"),
    "3 processes x 1 or 2": (3, 2, "ddp"),
}


def planned(small_set, root: Path, study: str, variant: str, words: dict):
    data = catalog.prepare("mini", small_set["dataset"], small_set["val"])
    overrides = {
        "train.max_iter": ITERATIONS,
        "train.log_period": 1,
        "train.checkpoint_period": 2,
        "train.amp": False,
        "schedule.warmup_iters": 1,
        **words,
    }
    found = studies.find(study)
    rows = runs.rows(found, "mini", "", overrides, [variant])
    (run,) = runs.plan(found, study, "mini", rows, 1, data, root)
    return run


def fit_all(arguments: str) -> None:
    """In each process: trains what is asked for, one after the other, without evaluation."""
    from experiments.jobs.detection import fit_run

    with distributed.process_group():
        for small_set, root, study, variant, words in json.loads(arguments):
            run = planned(small_set, Path(root), study, variant, words)
            Path(run.folder).mkdir(parents=True, exist_ok=True)
            torch.set_num_threads(1)
            fit_run(run.cfg, run)
            distributed.wait()


def call(processes: int, jobs: list | str) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    command = [
        *torchrun,
        "--standalone",
        "-m",
        "tests.experiments.training.test_distributed",
        jobs if isinstance(jobs, str) else json.dumps(jobs),
    ]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def trained(root: Path) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Weights and lines of metrics."""
    (weights,) = root.rglob("model_final.pth")
    lines = weights.with_name("metrics.json").read_text().splitlines()
    return torch.load(weights, weights_only=True)["model"], [json.loads(line) for line in lines]


@pytest.fixture(
    scope="module", params=["mask rcnn", pytest.param("retinanet", marks=pytest.mark.slow)]
)
def spreads(request, small_set, tmp_path_factory):
    """Folder of each spread's run: Mask R-CNN under a stem with batch norm, and RetinaNet, whose
    loss has a running normalizer."""
    study, variant = {
        "mask rcnn": ("global-vs-conv", "none"),
        "retinanet": ("plain-vs-hierarchical", "vit-retinanet"),
    }[request.param]
    root = tmp_path_factory.mktemp("spreads")
    for processes in (1, 2, 3):
        jobs = []
        for name, (count, micro_batch, how) in SPREADS.items():
            if count == processes:
                words = {
                    "dataloader.train.micro_batch_size": micro_batch,
                    "train.parallel": how,
                }
                jobs.append((small_set, str(root / name), study, variant, words))
        call(processes, jobs)
    return root


def distance(some: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return sum((some[k].double() - other[k].double()).square().sum().item() for k in some) ** 0.5


@pytest.mark.parametrize("name", [n for n, spread in SPREADS.items() if spread[0] > 1])
def test_same_curve_however_a_step_is_spread(spreads, name):
    """Within rounding; which may turn a choice between two proposals, later on."""
    (one,) = (n for n, s in SPREADS.items() if s[0] == 1 and s[1] == SPREADS[name][1])
    (other,) = (n for n, s in SPREADS.items() if s[0] == 1 and s[1] != SPREADS[name][1])
    weights, curve = trained(spreads / one)
    same_weights, same_curve = trained(spreads / name)
    other_weights, other_curve = trained(spreads / other)
    assert len(curve) == len(same_curve) == ITERATIONS
    for i, (line, same) in enumerate(zip(curve, same_curve, strict=True)):
        for key in line:
            if "loss" in key or key == "gradient_norm":
                expected = pytest.approx(line[key], rel=1e-5 if i < 2 else 2e-3, abs=1e-6)
                assert same[key] == expected, f"{key} of iteration {i}"
    # As close as one micro batch's size makes no curve of another's.
    assert curve[0]["total_loss"] != pytest.approx(other_curve[0]["total_loss"], rel=1e-3)
    assert distance(weights, same_weights) < 0.05 * distance(weights, other_weights)


class _Watched(torch.nn.Module):
    """Notes where its gradients lie, whenever it is called."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(3)))
        self.seen = []

    def forward(self, batch):
        gradients = [p.grad for p in self.parameters()]
        places = [None if g is None else g.data_ptr() for g in gradients]
        buckets = {g.untyped_storage().data_ptr() for g in gradients if g is not None}
        self.seen.append((places, len(buckets)))
        return {"loss": self.layers(torch.stack(batch)).square().mean()}


def train_watched(folder: Path, steps: range) -> _Watched:
    """Steps of two passes, a checkpoint after each; goes on after the folder's last one."""
    torch.manual_seed(0)
    net = _Watched()
    model = parallel(net, "ddp")
    data = [[torch.randn(8)] for _ in range(6)][2 * steps.start :]
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = LRMultiplier(optimizer, ConstantParamScheduler(1), 9)
    trainer = Trainer(model, data, optimizer, micro_batches=4)
    keeper = Checkpoints(folder, model, optimizer, schedule, Meter(4, None, None), None, 1, 9)
    keeper.trainer, trainer.max_iter = trainer, 9
    assert keeper.load() == steps.start
    keeper.before_train()
    with EventStorage():
        for trainer.iter in steps:
            trainer.run_step()
            keeper.after_step()
    keeper.after_train()
    return net


def watch_gradients(root: str) -> None:
    """In each process: three steps of two passes; all their gradients stay in the buckets, also
    where the last step is done by another who goes on after the second."""
    with distributed.process_group():
        whole = train_watched(Path(root) / "whole", range(3))
        train_watched(Path(root) / "halves", range(2))
        second = train_watched(Path(root) / "halves", range(2, 3))
        for net, passes in ((whole, 6), (second, 2)):
            assert len(net.seen) == passes
            (places, buckets), *others = net.seen
            assert None not in places
            assert buckets == 1
            assert all(other == (places, buckets) for other in others)
        torch.testing.assert_close(second.state_dict(), whole.state_dict(), rtol=0, atol=0)
        distributed.wait()


def test_gradients_of_all_passes_lie_in_the_buckets(tmp_path):
    """Beside them they would take four bytes a parameter more, and a copy."""
    for name in ("whole", "halves"):
        (tmp_path / name).mkdir()
    call(2, f"gradients {tmp_path}")


def agree() -> None:
    """In each process: process 0 finds out, fails for all, and is not waited for without end."""
    with distributed.process_group():
        rank = comm.get_rank()
        assert distributed.of_main(lambda: [rank]) == [0]

        def fail() -> None:
            raise UserError("no data")

        with pytest.raises(UserError if rank == 0 else SystemExit) as caught:
            distributed.of_main(fail)
        assert rank == 0 or caught.value.code == 2
        distributed._PATIENCE = datetime.timedelta(seconds=2)
        if rank == 1:
            time.sleep(4)
        with pytest.raises((UserError, RuntimeError)) as caught:
            distributed.wait()
        if rank == 0:
            assert "process 0 waited 0.000556 hours for process 1 of" in str(caught.value)
            time.sleep(3)  # or the other finds nobody
        os._exit(0)  # leaving the group would wait again


def test_process_0_decides_for_all_and_nobody_waits_for_ever():
    call(2, "agree")


def test_a_mistake_under_torchrun_is_told_once(small_set, tmp_path):
    """It is found by one process; the others neither read the data nor wait."""
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--standalone", "-m", "experiments", "run", "count", "--runs", str(tmp_path)]
    command += ["--dataset", f"{tmp_path}/none.json,{tmp_path}", "--val", small_set["val"]]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    told = [line for line in (done.stdout + done.stderr).splitlines() if "none.json" in line]
    assert done.returncode != 0
    assert told == [f"error: cannot read {tmp_path}/none.json: No such file or directory"]


def test_a_run_that_another_command_keeps(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(distributed, "_LOCKED", datetime.timedelta(seconds=0.3))
    path = tmp_path / ".lock"
    kept = pytest.raises(UserError, match="another command has held")
    with distributed.alone(path), kept, distributed.alone(path):
        pytest.fail("two at a time")
    assert capsys.readouterr().out == f"waiting for another command, which holds {path}\n"
    with distributed.alone(path):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_several_processes_go_on_where_they_were(how, small_set, tmp_path):
    """With clipping and a moving average, whose states FSDP spreads over the processes too."""
    words = {
        "dataloader.train.micro_batch_size": 2,
        "train.parallel": how,
        "train.ema": 0.9,
        "train.clip_grad_norm": 0.5,
    }
    job = (small_set, str(tmp_path), "global-vs-conv", "global", words)
    call(2, [job])
    expected, lines = trained(tmp_path)
    assert [line["iteration"] for line in lines] == list(range(ITERATIONS))
    (final,) = tmp_path.rglob("model_final.pth")
    final.unlink()
    call(2, [job])
    weights, lines = trained(tmp_path)
    assert [line["iteration"] for line in lines[ITERATIONS:]] == [ITERATIONS - 1]
    torch.testing.assert_close(weights, expected, rtol=0, atol=0)


def test_processes_that_do_not_fit_a_step(small_set, tmp_path):
    words = {"dataloader.train.micro_batch_size": 2}
    cfg = planned(small_set, tmp_path, "global-vs-conv", "none", words).cfg
    for count in (1, 2, 3, 4):
        checks.check_processes(cfg, count)
    with pytest.raises(UserError, match="GPUS=5 is too many: a step's 8 images are 4 passes of 2"):
        checks.check_processes(cfg, 5)
    cfg.train.parallel = "fsdp"
    with pytest.raises(UserError, match="GPUS=3 does not divide a step's 4 passes"):
        checks.check_processes(cfg, 3)


def test_cores_of_a_process(monkeypatch):
    own = len(os.sched_getaffinity(0))
    assert distributed.cores() == own
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")  # which may have bound it to its share already
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert distributed.cores() == 1


if __name__ == "__main__":
    name, _, rest = sys.argv[1].partition(" ")
    if name == "gradients":
        watch_gradients(rest)
    elif name == "agree":
        agree()
    else:
        fit_all(sys.argv[1])
