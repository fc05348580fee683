"""What a network costs, without training or computing it: parameters, MACs, activations.

MACs are multiply-accumulates of one image, attention counted. Papers of this field print them as
"FLOPs"; torch's counter counts 2 FLOPs for each. Attention is counted in its textbook form, padding
of windows included, whichever kernel computes it. docs/cost.md has the formulas.

`count` and `detector_cost` run the network on torch's meta device: shapes only, no memory and no
arithmetic.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.modeling.meta_arch import GeneralizedRCNN, RetinaNet
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from backbones.attention import Attention

from ..errors import UserError
from ..recipe.config import build_on_meta


@dataclass(frozen=True)
class Cost:
    """Of one module on one input.

    `activations` are the elements put out by convs, linear layers and other matrix products, but
    for the scores of attention (what a softmax reads), which a kernel need not put out.
    """

    params: int
    macs: int
    activations: int


@contextmanager
def textbook_attention(module: nn.Module) -> Iterator[None]:
    """All `Attention` in `module` computes the textbook form meanwhile."""
    kernels = {m: m.attention for m in module.modules() if isinstance(m, Attention)}
    try:
        for attention in kernels:
            attention.attention = "reference"
        yield
    finally:
        for attention, kernel in kernels.items():
            attention.attention = kernel


# ---- Counting on the meta device ---------------------------------------------------------------

_SOFTMAX = (torch.ops.aten._softmax, torch.ops.aten._safe_softmax)


class _Counter(TorchDispatchMode):
    """Adds up MACs and activations of each operator for every module that it runs in."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self._modules = dict(module.named_modules())
        self.counts = {name: Counter() for name in self._modules}
        self._within = [{""}]  # names of the modules that run now, of the innermost one last

    def __enter__(self):
        self._hooks = []
        for name, module in self._modules.items():
            self._hooks.append(module.register_forward_pre_hook(self._entering(name)))
            self._hooks.append(module.register_forward_hook(self._leave))
        return super().__enter__()

    def __exit__(self, *exception):
        for hook in self._hooks:
            hook.remove()
        return super().__exit__(*exception)

    def _entering(self, name: str) -> Callable[..., None]:
        # "a.b" counts for "a" too, also if "a" itself is never called.
        names = set(itertools.accumulate(name.split("."), "{}.{}".format))

        def enter(*_: Any) -> None:
            self._within.append(self._within[-1] | names)

        return enter

    def _leave(self, *_: Any) -> None:
        self._within.pop()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        op = func.overloadpacket
        if op in flop_registry:
            self._add("macs", flop_registry[op](*args, **kwargs, out_val=out) // 2)
            self._add("activations", out.numel())
        elif op in _SOFTMAX:
            self._add("activations", -out.numel())
        return out

    def _add(self, what: str, number: int) -> None:
        for name in self._within[-1]:
            self.counts[name][what] += number


def count(module: nn.Module, *inputs: Any) -> dict[str, Cost]:
    """Costs of `module(*inputs)` in evaluation mode, on the meta device, wherever `module` lies.

    Returns:
        Of the module itself under "", of each of its modules under its dotted name.
    """
    tensors = itertools.chain(module.named_parameters(), module.named_buffers())
    on_meta = {name: tensor.to("meta") for name, tensor in tensors}
    inputs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), inputs)
    counter = _Counter(module)
    with _evaluated(module), textbook_attention(module), torch.device("meta"), counter:
        torch.func.functional_call(module, on_meta, inputs)
    return {
        name: Cost(
            params=sum(p.numel() for p in module.get_submodule(name).parameters()),
            macs=counted["macs"],
            activations=counted["activations"],
        )
        for name, counted in counter.counts.items()
    }


@contextmanager
def _evaluated(module: nn.Module) -> Iterator[None]:
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)


# ---- Detectors ---------------------------------------------------------------------------------


class _Pooled(torch.autograd.Function):
    """Regions read from levels: sizes only. Its backward pass writes a gradient for every level."""

    @staticmethod
    def forward(ctx: Any, regions: int, size: tuple[int, int], *levels: Tensor) -> Tensor:
        ctx.shapes = [level.shape for level in levels]
        return levels[0].new_zeros(regions, levels[0].shape[1], *size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(grad.new_zeros(shape) for shape in ctx.shapes)


def walk(
    detector: nn.Module, image_BCHW: Tensor, boxes: int, masks: int
) -> Iterator[tuple[str, Any]]:
    """What the heads of a detector put out, one after the other: of its "anchors" scores and
    offsets, each of all levels; scores and offsets of "boxes", of each stage; "masks".

    Untrained weights would find no boxes and masks: there are as many as is said. Pooling them
    counts nothing. RetinaNet has neither.
    """
    levels = detector.backbone(image_BCHW)
    if isinstance(detector, RetinaNet):
        yield "anchors", detector.head([levels[f] for f in detector.head_in_features])
        return
    rpn, heads = detector.proposal_generator, detector.roi_heads
    yield "anchors", rpn.rpn_head([levels[f] for f in rpn.in_features])

    def pooled(regions: int, pooler: ROIPooler, features: list[str]) -> Tensor:
        return _Pooled.apply(regions, pooler.output_size, *(levels[f] for f in features))

    for box_head, box_predictor in _stages(heads):
        regions = pooled(boxes, heads.box_pooler, heads.box_in_features)
        yield "boxes", box_predictor(box_head(regions))
    if heads.mask_on:
        regions = pooled(masks, heads.mask_pooler, heads.mask_in_features)
        yield "masks", heads.mask_head.layers(regions)


def _stages(heads: StandardROIHeads) -> list[tuple[nn.Module, nn.Module]]:
    """Box head and predictor of each."""
    if isinstance(heads, CascadeROIHeads):
        return list(zip(heads.box_head, heads.box_predictor, strict=True))
    return [(heads.box_head, heads.box_predictor)]


class _Whole(nn.Module):
    """A detector's inference with as many proposals and masks as its test settings allow."""

    def __init__(self, detector: nn.Module):
        super().__init__()
        self.detector = detector
        self.boxes = self.masks = 0
        if not isinstance(detector, RetinaNet):
            self.boxes = detector.proposal_generator.post_nms_topk[False]
            predictor = _stages(detector.roi_heads)[-1][1]
            self.masks = min(self.boxes, predictor.test_topk_per_image)

    def forward(self, image_BCHW: Tensor) -> list[Any]:
        return [out for _, out in walk(self.detector, image_BCHW, self.boxes, self.masks)]


@dataclass(frozen=True)
class DetectorCost:
    """Costs of a detector on one image of `size` (height, width) in pixels.

    The encoder is the backbone without its neck.
    """

    detector: Cost
    encoder: Cost
    size: tuple[int, int]


def detector_cost(cfg_model: DictConfig, size: tuple[int, int] | None = None) -> DetectorCost:
    """Costs of the detector that a config describes, on one image; no weights are allocated.

    Proposals and masks are as many as its test settings allow: with the published configs 1,000
    (each of a cascade's box heads gets all of them) and 100.

    Args:
        cfg_model: `model` of a training config: detectron2's `RetinaNet`, or its `GeneralizedRCNN`
            with standard or cascaded heads.
        size: None: the square the backbone pads images to, or else its encoder's `img_size`.

    Raises:
        UserError: another detector, or no size given and none known.
    """
    detector = build_on_meta(cfg_model)
    two_stages = isinstance(detector, GeneralizedRCNN) and isinstance(
        detector.roi_heads, StandardROIHeads
    )
    if not two_stages and not isinstance(detector, RetinaNet):
        raise UserError(
            f"costs of the model {type(detector).__name__} cannot be counted: RetinaNet can, and "
            "GeneralizedRCNN with StandardROIHeads or CascadeROIHeads"
        )
    backbone = detector.backbone
    net = next((name for name in ("net", "bottom_up") if hasattr(backbone, name)), None)
    encoder = getattr(backbone, net) if net else backbone
    side = backbone.padding_constraints.get("square_size") or getattr(encoder, "img_size", None)
    if not (size or side):
        raise UserError("costs need an image size: set model.backbone.square_pad in the config")
    size = size or (side, side)
    costs = count(_Whole(detector), torch.zeros(1, 3, *size, device="meta"))
    encoder_name = f"detector.backbone.{net}" if net else "detector.backbone"
    return DetectorCost(costs[""], costs[encoder_name], size)
