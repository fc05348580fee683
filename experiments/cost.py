"""What a detector costs, without training it: parameters, MACs, activations.

MACs are multiply-accumulates of one image, attention counted: fvcore has no handle for
`scaled_dot_product_attention` and would count it as nothing. Papers of this field print MACs as
"FLOPs". Attention is counted in its textbook form, padding included, whichever kernel computes it.
The whole detector is counted with a fixed number of proposals and masks, as untrained weights find
none of either.
"""

import logging
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.modeling.meta_arch import GeneralizedRCNN
from fvcore.nn import jit_handles
from fvcore.nn.jit_analysis import JitModelAnalysis
from omegaconf import DictConfig
from torch import Tensor, nn

from backbones.attention import Attention


@dataclass(frozen=True)
class Cost:
    """Of one module on one input."""

    params: int
    macs: int
    activations: int  # elements put out by convs, linear layers, matrix products and attention


def _shape(value: Any) -> list[int]:
    return value.type().sizes()


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """q k and attention v: (N x D) by (D x N), then (N x N) by (N x D), per head."""
    *heads, n_query, dim = _shape(inputs[0])
    *_, n_key, dim_value = _shape(inputs[2])
    return math.prod(heads) * n_query * n_key * (dim + dim_value)


def _einsum(inputs: list[Any], outputs: list[Any]) -> int:
    """One multiply-accumulate per combination of index values (fvcore's has four digits)."""
    operands, _ = inputs[0].toIValue().split("->")
    sizes = {}
    for letters, operand in zip(operands.split(","), inputs[1].node().inputs(), strict=True):
        sizes |= zip(letters, _shape(operand), strict=True)
    return math.prod(sizes.values())


# Products only: fvcore also counts norms and resizing by their elements, which the paper's figures
# and torch's own counter leave out.
_PRODUCTS = {
    "aten::_convolution": jit_handles.conv_flop_jit,
    "aten::addmm": jit_handles.addmm_flop_jit,
    "aten::bmm": jit_handles.bmm_flop_jit,
    "aten::linear": jit_handles.linear_flop_jit,
    "aten::matmul": jit_handles.matmul_flop_jit,
    "aten::mm": jit_handles.matmul_flop_jit,
    "aten::scaled_dot_product_attention": _attention,
}


def _macs_and_activations(
    macs_of: Callable, put_out: bool = True
) -> Callable[[list[Any], list[Any]], Counter]:
    def handle(inputs: list[Any], outputs: list[Any]) -> Counter:
        macs = macs_of(inputs, outputs)
        macs = sum(macs.values()) if isinstance(macs, Counter) else macs
        return Counter(macs=int(macs), activations=put_out * math.prod(_shape(outputs[0])))

    return handle


_HANDLES = {op: _macs_and_activations(macs_of) for op, macs_of in _PRODUCTS.items()}
# The scores of attention, which a kernel need not put out.
_HANDLES["aten::einsum"] = _macs_and_activations(_einsum, put_out=False)


@contextmanager
def _textbook_attention(module: nn.Module) -> Iterator[None]:
    kernels = {m: m.attention for m in module.modules() if isinstance(m, Attention)}
    try:
        for attention in kernels:
            attention.attention = "reference"
        yield
    finally:
        for attention, kernel in kernels.items():
            attention.attention = kernel


def count(module: nn.Module, *inputs: Any) -> dict[str, Cost]:
    """Costs of `module(*inputs)`, by computing it once, traced by fvcore, in evaluation mode.

    Returns:
        Of the module itself under "", of each of its modules under its dotted name.
    """
    training = module.training
    module.eval()
    analysis = JitModelAnalysis(module, inputs)
    analysis.set_op_handle(**_HANDLES)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad(), _textbook_attention(module):
            warnings.simplefilter("ignore")  # of the tracer
            counted = analysis.by_module_and_operator()
    finally:
        module.train(training)
    return {
        name: Cost(
            params=sum(p.numel() for p in module.get_submodule(name).parameters()),
            macs=counters["macs"],
            activations=counters["activations"],
        )
        for name, counters in counted.items()
    }


class _Whole(nn.Module):
    """The detector's inference with given numbers of boxes and masks; pooling counts nothing."""

    def __init__(self, detector: GeneralizedRCNN, boxes: int, masks: int):
        super().__init__()
        self.detector, self.boxes, self.masks = detector, boxes, masks

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        levels = self.detector.backbone(image_BCHW)
        rpn, heads = self.detector.proposal_generator, self.detector.roi_heads
        outputs = [x for xs in rpn.rpn_head([levels[f] for f in rpn.in_features]) for x in xs]
        level = levels[heads.box_in_features[0]]
        pooled = level.new_zeros(self.boxes, level.shape[1], *heads.box_pooler.output_size)
        outputs += heads.box_predictor(heads.box_head(pooled))
        pooled = level.new_zeros(self.masks, level.shape[1], *heads.mask_pooler.output_size)
        outputs.append(heads.mask_head.layers(pooled))
        return outputs


@dataclass(frozen=True)
class DetectorCost:
    """Costs of a detector on one image of `size` (height, width) in pixels."""

    detector: Cost
    encoder: Cost
    size: tuple[int, int]


def detector_cost(cfg_model: DictConfig, size: tuple[int, int] | None = None) -> DetectorCost:
    """Costs of the detector that a config describes, on one image, on the CPU.

    Proposals and masks are as many as its test settings allow: with the published configs 1,000
    and 100.

    Args:
        cfg_model: `model` of a training config.
        size: None: the square the backbone pads images to, or else its encoder's `img_size`.
    """
    detector = instantiate(cfg_model)
    backbone, heads = detector.backbone, detector.roi_heads
    side = backbone.square_pad or backbone.net.img_size
    size = size or (side, side)
    boxes = detector.proposal_generator.post_nms_topk[False]
    whole = _Whole(detector, boxes, min(boxes, heads.box_predictor.test_topk_per_image))
    costs = count(whole, torch.zeros(1, 3, *size))
    return DetectorCost(costs[""], costs["detector.backbone.net"], size)
