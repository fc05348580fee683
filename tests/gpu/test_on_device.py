"""What must hold on a GPU; the same functions on a CPU, so that they are right when there is one.

`make gpu-check` runs those marked `gpu`, and keeps a row of each.
"""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from backbones import ViT, kernels
from experiments import records
from experiments.jobs.detection import fit_run
from experiments.training.training_loop import compile_blocks
from tests.backbones.test_attention import SMALL, assert_same, outputs_and_gradients, twins
from tests.conftest import ROOT, study_folder
from tests.experiments.training.test_distributed import planned

STRATEGIES = ["none", "global", "conv", "shifted"]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch) -> str:
    if request.param == "cpu":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    elif not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # products are exact as it is
    return request.param


def tolerance(device: str) -> float:
    """Sums in another order, among them atomic ones."""
    return 1e-5 if device == "cpu" else 1e-4


@pytest.mark.parametrize("rel_pos", [False, True])
@pytest.mark.parametrize("propagation", STRATEGIES)
def test_what_runs_is_the_reference(device, propagation, rel_pos):
    """Outputs and gradients in float32; windows of 5 on 11 x 19 tokens: padding."""
    nets = twins(propagation=propagation, use_rel_pos=rel_pos)
    image = torch.randn(2, 3, 176, 304, device=device)
    fused, reference = (outputs_and_gradients(net.to(device), image) for net in nets)
    assert_same(fused, reference, tolerance(device))


@pytest.mark.parametrize("propagation", ["global", "shifted"])
def test_the_triton_operator_is_the_reference(device, propagation):
    """As above; on a CPU interpreted, on fewer tokens."""
    if not kernels.runs_triton(torch.zeros(1, device=device), 12):
        pytest.skip("no Triton here")
    nets = twins(propagation=propagation, use_rel_pos=True, depth=1, count=1)
    nets[0].blocks[0].attn.attention = "triton"
    size = (2, 3, 176, 304) if device == "cuda" else (1, 3, 96, 112)
    image = torch.randn(size, device=device)
    found, reference = (outputs_and_gradients(net.to(device), image) for net in nets)
    assert_same(found, reference, tolerance(device))


def test_a_gpu_computes_what_a_cpu_does(device):
    fused, reference = twins(propagation="global", use_rel_pos=True)
    image = torch.randn(1, 3, 176, 304)
    expected = outputs_and_gradients(reference, image)
    found = outputs_and_gradients(fused.to(device), image.to(device))
    found = {name: value.cpu() for name, value in found.items()}
    assert_same(found, expected, 1e-4)


@pytest.mark.parametrize("propagation", STRATEGIES)
def test_amp_errs_no_more_than_the_reference(device, propagation):
    """bfloat16 autocast against float64: output and gradients, all of them finite."""
    fused, reference = (net.to(device) for net in twins(propagation=propagation, use_rel_pos=True))
    image = torch.randn(2, 3, 256, 256, device=device)
    exact = outputs_and_gradients(copy.deepcopy(reference).double(), image.double())
    errors = []
    for net in (fused, reference):
        with torch.autocast(device, torch.bfloat16):
            rough = outputs_and_gradients(net, image)
        assert all(value.isfinite().all() for value in rough.values())
        wrong = [(rough[key] - value).norm() / value.norm() for key, value in exact.items()]
        errors.append(torch.stack(wrong).mean().item())
    assert errors[0] <= 1.2 * errors[1]


@pytest.mark.parametrize("propagation", STRATEGIES)
def test_activation_checkpointing(device, propagation):
    words = dict(propagation=propagation, use_rel_pos=True, drop_path_rate=0.3)
    plain, _ = twins(**words)
    saving = ViT(**SMALL, **words, use_act_checkpoint=True)
    saving.load_state_dict(plain.state_dict())
    image = torch.randn(2, 3, 176, 304, device=device)
    results = []
    for net in (plain, saving):
        torch.manual_seed(3)
        results.append(outputs_and_gradients(net.to(device).train(), image))
    assert_same(results[1], results[0], tolerance(device))


def words(device: str, **others) -> dict:
    found = {"train.max_iter": 4, "dataloader.train.num_workers": 0, "train.threads": 1}
    return found | {"train.amp": device == "cuda"} | others


def test_a_detector_trains_and_goes_on_where_it_stopped(device, small_set, tmp_path):
    """Four steps; and the last two again from the checkpoint in between: the same weights, on a GPU
    but for the order of its atomic sums."""
    run = planned(small_set, tmp_path, "global-vs-conv", "global", words(device))
    folder = Path(run.folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = []
    for _ in range(2):
        fit_run(run.cfg, run)
        state = torch.load(folder / "model_final.pth", weights_only=True)
        weights.append({k: v.double().cpu() for k, v in state["model"].items()})
        for path in (folder / "model_final.pth", folder / "model_0000003.pth"):
            path.unlink(missing_ok=True)
    log = (folder / "metrics.json").read_text()
    assert "NaN" not in log
    assert [line for line in log.splitlines() if '"iteration": 2' in line]
    one, other = weights
    assert all(value.isfinite().all() for value in one.values())
    moved = sum((one[k] - other[k]).norm() ** 2 for k in one) ** 0.5
    size = sum(value.norm() ** 2 for value in one.values()) ** 0.5
    assert moved <= (0 if device == "cpu" else 1e-3 * size)


# Runs a study as the command does, then says whether this process has touched the GPU.
_RUN = """
import sys, torch
from experiments import __main__ as main, commands
code = commands.run(main.app, main.console)
print("holds a context:", torch.cuda.is_initialized())
sys.exit(code)
"""


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def study(request, small_set, tmp_path_factory):
    """A mini study of two rows, run to its end: its folder, and what the command printed."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    root = tmp_path_factory.mktemp("runs")
    overrides = [f"{k}={v}" for k, v in words(request.param).items()]
    options = [
        "--seeds", "1", "--variants", "none,global", "--runs", str(root), "--jobs", "1",
        "--dataset", small_set["dataset"], "--val", small_set["val"],
        "--overrides", " ".join([*overrides, "train.max_iter=2"]),
    ]  # fmt: skip
    command = [sys.executable, "-W", "ignore", "-c", _RUN, "run", "global-vs-conv", *options]
    env = os.environ | ({"CUDA_VISIBLE_DEVICES": "-1"} if request.param == "cpu" else {})
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return request.param, study_folder(root, "global-vs-conv", small_set), done.stdout


def test_a_mini_study(study):
    device, folder, _ = study
    frame = records.load(folder)
    assert sorted(frame.variant) == ["global", "none"]
    kind = "process resident" if device == "cpu" else "allocated on device"
    assert set(frame.memory_kind) == {kind}
    assert (frame.peak_memory_mib > 10).all()
    assert frame.ap_box.between(0, 100).all()


def test_what_starts_runs_holds_no_context(study):
    """Half a GiB of a GPU that its runs want."""
    assert "holds a context: False" in study[2]


@pytest.mark.parametrize("attention", ["fused", "triton"])
@pytest.mark.parametrize("propagation", ["global", "shifted"])
def test_blocks_compile(device, propagation, attention):
    """One by one, forward and backward, without a graph break; on a CPU without inductor's C++."""
    if attention == "triton" and device == "cpu":
        pytest.skip("in tests/backbones/test_triton.py, on fewer tokens")
    torch._dynamo.reset()
    net, _ = twins(propagation=propagation, use_rel_pos=True, depth=2)
    net = net.to(device)
    for block in net.blocks:
        block.attn.attention = attention
    image = torch.randn(2, 3, 160, 320, device=device)
    expected = outputs_and_gradients(net, image)
    compile_blocks(net, fullgraph=True, backend="aot_eager" if device == "cpu" else "inductor")
    assert_same(outputs_and_gradients(net, image), expected, 10 * tolerance(device))
