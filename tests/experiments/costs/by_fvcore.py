"""A second count of MACs, by another library, of what a CPU really computes."""

import logging
import math
import warnings
from typing import Any

import torch
from fvcore.nn import jit_handles
from fvcore.nn.jit_analysis import JitModelAnalysis
from torch import nn


def _shape(value: Any) -> list[int]:
    return value.type().sizes()


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """q k and attention v: (N x D) by (D x N), then (N x N) by (N x D), per head."""
    *heads, n_query, dim = _shape(inputs[0])
    *_, n_key, dim_value = _shape(inputs[2])
    return math.prod(heads) * n_query * n_key * (dim + dim_value)


def _attention_in_place(inputs: list[Any], outputs: list[Any]) -> int:
    """Of `backbones.kernels.chunked_attention` and `triton_attention`. fvcore hands over tensors
    but for those that are None: with two axes, whole numbers are the groups or their labels, others
    the tables of relative positions.
    """
    batch, tokens, qkv_channels = _shape(inputs[0])
    groups, n, positions = 1, tokens, 0
    for value in inputs[1:]:
        if value.type().dim() == 2 and value.type().scalarType() == "Long":
            groups, n = _shape(value)
        elif value.type().dim() == 2:
            positions = (_shape(value)[0] + 2) // 2  # h + w, of 2 h - 1 and 2 w - 1 rows
    return batch * groups * n * (2 * n + positions) * qkv_channels // 3


def _einsum(inputs: list[Any], outputs: list[Any]) -> int:
    """One multiply-accumulate per combination of index values (fvcore's has four digits)."""
    operands, _ = inputs[0].toIValue().split("->")
    sizes = {}
    for letters, operand in zip(operands.split(","), inputs[1].node().inputs(), strict=True):
        sizes |= zip(letters, _shape(operand), strict=True)
    return math.prod(sizes.values())


# Products only: fvcore also counts norms and resizing by their elements, which the paper's figures
# and torch's own counter leave out. It knows no fused attention and would count it as nothing.
_HANDLES = {
    "aten::_convolution": jit_handles.conv_flop_jit,
    "aten::addmm": jit_handles.addmm_flop_jit,
    "aten::bmm": jit_handles.bmm_flop_jit,
    "aten::einsum": _einsum,
    "aten::linear": jit_handles.linear_flop_jit,
    "aten::matmul": jit_handles.matmul_flop_jit,
    "aten::mm": jit_handles.matmul_flop_jit,
    "aten::scaled_dot_product_attention": _attention,
    "prim::PythonOp._ChunkedAttention": _attention_in_place,
    "prim::PythonOp._TritonAttention": _attention_in_place,
}


def fvcore_macs(module: nn.Module, *inputs: Any) -> dict[str, int]:
    """MACs of `module(*inputs)` by fvcore's tracer: computes it once, on the CPU.

    Attention is counted as its kernel computes it, so the fused one without linear layers on the
    padding of windows; use `textbook_attention` to count as `cost.count` does.

    Returns:
        Of the module itself under "", of each of its modules under its dotted name.
    """
    module.eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer
        analysis = JitModelAnalysis(module, inputs).set_op_handle(**_HANDLES)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
        return {name: int(macs) for name, macs in analysis.by_module().items()}
