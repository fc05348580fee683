"""Attention on a GPU without Triton: which kernel runs, and the other forms of torch's."""

import subprocess
import sys
from functools import partial

import pytest
import torch

from backbones import kernels
from backbones.partition import Partition, ShiftedWindows
from tests.backbones.test_attention import assert_same, outputs_and_gradients
from tests.backbones.test_triton import DEVICE, TOLERANCE, attention_of, results_of
from tests.conftest import ROOT


def test_the_table_of_choices():
    """Every block has a line; without a measurement it names torch's choice."""
    groups = ("global", "windows", "labelled")
    assert set(kernels.WHERE) == {(rel_pos, g) for rel_pos in (True, False) for g in groups}
    for choice in kernels.WHERE.values():
        assert choice.kernel in (*kernels.GROUPED, kernels.TRITON)
        assert choice.measured != "not measured" or choice.kernel == "folded"


@pytest.mark.parametrize("rel_pos", [False, True])
@pytest.mark.parametrize("form", ["narrow", "labelled"])
def test_other_forms_of_the_folded_kernel(form, rel_pos):
    """With v of 128 channels beside q of more, and with labels as channels."""
    partition, size = (Partition(), (60, 9)) if form == "narrow" else (ShiftedWindows(4), (6, 7))
    attention = attention_of(partition, channels=64, rel_pos=rel_pos)
    x = torch.randn(1, *size, 64, device=DEVICE)
    found, expected = results_of(attention, x, "_folded", "_reference")
    assert_same(found, expected, TOLERANCE)
    attention.forward = partial(attention._folded, partition=partition, kernel=form)
    assert_same(outputs_and_gradients(attention, x), expected, TOLERANCE)


def test_operators_are_there_without_triton():
    """A program that was exported elsewhere can be loaded and counted."""
    code = """
import sys
sys.modules["triton"] = None
import torch
import backbones
from backbones.kernels import gpu_attention, runs_triton
assert torch.ops.backbones.chunked_attention and torch.ops.backbones.triton_attention
x = torch.zeros(1, 4, 48, device="meta")
assert runs_triton(x, 16)
out, _ = torch.ops.backbones.triton_attention(x, None, None, None, None, 1, 2, 2)
assert out.shape == (1, 4, 16)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=True)
