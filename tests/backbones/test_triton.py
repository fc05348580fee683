"""The Triton operator is the reference: on a GPU where there is one, else interpreted on a CPU."""

import copy
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from backbones import Partition, ShiftedWindows, ViT, Windows, kernels
from backbones.attention import Attention
from backbones.kernels import gpu_attention
from experiments.costs import detector_cost as cost
from tests.backbones.test_attention import (
    Scattered,
    assert_same,
    normal_weights,
    outputs_and_gradients,
)
from tests.conftest import ROOT
from tests.experiments.costs.by_fvcore import fvcore_macs

DEVICE = "cuda" if torch.cuda.device_count() else "cpu"
pytestmark = pytest.mark.skipif(
    not kernels.runs_triton(torch.zeros(1, device=DEVICE), 64), reason="no Triton here"
)
TOLERANCE = 1e-5 if DEVICE == "cpu" else 1e-4


def attention_of(partition, channels=16, heads=1, rel_pos=True) -> Attention:
    torch.manual_seed(0)
    words = dict(use_rel_pos=rel_pos, attention="triton")
    return normal_weights(Attention(channels * heads, heads, partition, (6, 9), **words)).to(DEVICE)


def results_of(attention, x, *kernel_names) -> list[dict[str, torch.Tensor]]:
    found = []
    for name in kernel_names:
        attention.forward = partial(getattr(attention, name), partition=attention.partition)
        found.append(outputs_and_gradients(attention, x))
    return found


def check(attention, size, images=1):
    x = torch.randn(images, *size, attention.proj.in_features, device=DEVICE)
    assert_same(*results_of(attention, x, "_triton", "_reference"), TOLERANCE)


# Maps that windows do not fit: padding. Tables are resized for global attention.
@pytest.mark.parametrize(
    ("partition", "size", "rel_pos", "images", "heads"),
    [
        (Partition(), (5, 7), True, 2, 2),
        (Windows(3), (5, 4), True, 2, 1),
        (Windows(3), (3, 4), False, 1, 2),
        (ShiftedWindows(4), (6, 7), True, 1, 1),
        (ShiftedWindows(4), (6, 7), False, 1, 1),
    ],
)
def test_it_is_the_reference(partition, size, rel_pos, images, heads):
    check(attention_of(partition, heads=heads, rel_pos=rel_pos), size, images)


def test_a_partition_of_ones_own():
    check(attention_of(Scattered()), (4, 3))


@pytest.mark.parametrize("channels", [4, 24, 63, 80])  # 80: ViT-H's heads
def test_channels_that_are_no_power_of_two(channels):
    check(attention_of(Windows(3), channels), (2, 4))


def test_more_columns_than_a_tile_of_keys_has():
    check(attention_of(Partition()), (2, 67))


@pytest.mark.parametrize("rel_pos", [False, True])
def test_more_tokens_than_a_tile_of_queries_has(rel_pos, monkeypatch):
    """Several tiles of both, and the larger one of queries."""
    from backbones.kernels import triton_launch

    monkeypatch.setattr(triton_launch, "_MANY_TOKENS", 100)
    check(attention_of(Partition(), rel_pos=rel_pos), (8, 16))


def test_bfloat16_under_autocast():
    """As far from float64 as the reference."""
    attention = attention_of(ShiftedWindows(4))
    x = torch.randn(1, 5, 6, 16, device=DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        ours, reference = results_of(attention, x, "_triton", "_reference")
    (exact,) = results_of(copy.deepcopy(attention).double(), x.double(), "_reference")
    for found in (ours, reference):
        found["error"] = sum((found[k] - v).norm() / v.norm() for k, v in exact.items())
    # The interpreter cuts bfloat16 numbers off where a GPU rounds them.
    assert ours["error"] <= (3 if DEVICE == "cpu" else 1.2) * reference["error"]


def small(**words) -> ViT:
    torch.manual_seed(0)
    words = dict(img_size=80, embed_dim=16, depth=2, num_heads=1, window_size=3) | words
    return normal_weights(ViT(use_rel_pos=True, **words)).to(DEVICE)


def test_an_encoder():
    """By its word; with checkpointing; compiled without a graph break, blocks one by one."""
    encoder = small(propagation="shifted", count=1, depth=1, attention="triton")
    image = torch.randn(1, 3, 64, 80, device=DEVICE)
    found = outputs_and_gradients(encoder, image)
    with cost.textbook_attention(encoder):
        assert_same(found, outputs_and_gradients(encoder, image), TOLERANCE)
    encoder.use_act_checkpoint = True
    assert_same(outputs_and_gradients(encoder.train(), image), found, 1e-6)
    encoder.use_act_checkpoint = False
    torch._dynamo.reset()
    for block in encoder.blocks:
        block.compile(fullgraph=True, backend="aot_eager")
    assert_same(outputs_and_gradients(encoder, image), found, TOLERANCE)


def test_no_images():
    encoder = small(propagation="shifted", attention="triton")
    image = torch.zeros(0, 3, 64, 80, device=DEVICE, requires_grad=True)
    encoder(image)["last_feat"].sum().backward()
    assert image.grad.shape == image.shape


def test_the_operators_keep_torchs_rules():
    attention = attention_of(ShiftedWindows(4))
    x, partition = torch.randn(1, 3, 5, 16, device=DEVICE), attention.partition
    qkv = attention.qkv(x).flatten(1, 2).detach()
    tables = kernels.relative_tables(torch.randn(7, 8), torch.randn(7, 8)).to(DEVICE)
    inputs = (
        qkv,
        torch.randn(48, device=DEVICE),
        partition.index(3, 5, DEVICE),
        partition.labels(4, 8, DEVICE),
        gpu_attention._terms(qkv, tables, 2),
    )
    rules = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(gpu_attention._forward, (*inputs, 2, 4, 4), test_utils=rules)
    out = gpu_attention._forward(*inputs, 2, 4, 4)
    grad = torch.randn_like(out[0])
    of_backward = (grad, *inputs, *out, 2, 4, 4)
    torch.library.opcheck(gpu_attention._backward, of_backward, test_utils=rules)


def test_a_second_derivative_is_refused():
    leaf = torch.randn(1, 6, 48, device=DEVICE, requires_grad=True)
    found = kernels.triton_attention(leaf, None, None, None, None, 1, 2, 3)
    (gradient,) = torch.autograd.grad(found.square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


def test_costs():
    """fvcore counts the textbook's products, torch's counter those that the kernels compute."""
    encoder = small(propagation="shifted", count=1, attention="triton").cpu()
    image = torch.zeros(1, 3, 96, 96)  # windows fit: no padding
    if gpu_attention.INTERPRETED:
        with cost.textbook_attention(encoder):
            expected = fvcore_macs(encoder, image)
        assert fvcore_macs(encoder, image) == expected
    T, N, C = 36, 9, 16
    macs = {}
    for how in ("forward", "backward"):
        attention = encoder.blocks[1].attn.to("meta").requires_grad_(how == "backward")
        x = torch.zeros(1, 6, 6, C, device="meta", requires_grad=how == "backward")
        with FlopCounterMode(display=False) as counter:
            out = attention(x)
            if how == "backward":
                out.sum().backward()
        found = counter.get_flop_counts()["Global"]
        macs[how] = {str(op).split(".")[-1]: flops // 2 for op, flops in found.items()}
    assert macs["forward"]["triton_attention"] == 2 * T * N * C
    assert macs["backward"]["triton_attention_backward"] == 7 * T * N * C


# Compiles what the operator launches for an H100, as a driver that has none would be asked to.
_COMPILE = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from backbones import Partition, ShiftedWindows
from backbones.kernels import gpu_attention, triton_launch


class Absent:
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=0):
        return 0


def compile_only(self, *args, grid, warmup, **words):
    kernel = run(self, *args, grid=grid, warmup=True, **words)
    print(self.__name__, words["D"], "wgmma" in kernel.asm["ptx"], kernel.metadata.shared)


driver.set_active(Absent())
run, JITFunction.run = JITFunction.run, compile_only
for D in (64, 80):
    for partition, side, length in ((Partition(), 64, 64), (ShiftedWindows(14), 20, 14)):
        padded = partition.padded_size(side, side)
        qkv = torch.zeros(1, side**2, 3 * D, dtype=torch.bfloat16)
        tables = qkv.new_zeros(2 * (2 * length - 1), D)
        inputs = (
            qkv,
            None if padded == (side, side) else qkv[0, 0],
            partition.index(side, side, "cpu"),
            partition.labels(*padded, "cpu"),
            gpu_attention._terms(qkv, tables, 1),
        )
        out = triton_launch.forward(*inputs, 1, length, length)
        triton_launch.backward(out[0], *inputs, *out, 1, length, length)
"""


@pytest.mark.slow
def test_it_compiles_for_a_gpu_that_is_not_here(tmp_path):
    """By Hopper's tensor-core instructions, in a third of its shared memory of 227 KiB."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _COMPILE],
        cwd=ROOT,
        env=env | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 3 * 4
    assert all(tensor_cores == "True" for *_, tensor_cores, _ in lines)
    assert all(int(shared) <= 80 * 1024 for *_, shared in lines)


# ---- Which kernel runs --------------------------------------------------------------------------


def test_where_it_cannot_run_another_kernel_does(monkeypatch):
    """float64; wide heads; no GPU and no interpreter."""
    called = []
    forward = gpu_attention._TritonAttention.forward
    monkeypatch.setattr(
        gpu_attention._TritonAttention,
        "forward",
        staticmethod(lambda *args: called.append(1) or forward(*args)),
    )
    windows = attention_of(Windows(3))
    x = torch.randn(1, 3, 3, 16, device=DEVICE)

    def runs(attention, x) -> bool:
        called.clear()
        found = attention(x)
        assert_same({"": found}, {"": attention._reference(x, attention.partition)}, TOLERANCE)
        return bool(called)

    assert runs(windows, x)
    assert not runs(copy.deepcopy(windows).double(), x.double())
    wide = attention_of(Windows(3), channels=144)
    assert not runs(wide, torch.randn(1, 3, 3, 144, device=DEVICE))
    monkeypatch.setattr(gpu_attention, "_TRITON", False)
    assert not runs(windows, x)
