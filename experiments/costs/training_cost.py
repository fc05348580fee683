"""What a training step costs, counted without computing it: MACs, kernels, peak memory.

The detector's forward and backward pass run on torch's meta device, where tensors have a size and
no memory; a ledger adds up the bytes of all that are alive. So memory is not a formula: what
autograd keeps, what activation checkpointing computes again and what gradients take on the way are
those of the real step.

On the meta device attention is what `backbones.kernels.WHERE`, or the encoder's word, names for a
GPU; in `folded_attention` torch's
`scaled_dot_product_attention` there keeps what its flash kernel keeps: q, k, v, the output and one
number per query, never tokens x tokens.
"""

import contextlib
import itertools
import logging
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from fvcore.nn import sigmoid_focal_loss
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from backbones.sequence import TokenSequence
from backbones.weights import encoder_of

from ..recipe.config import build_on_meta
from ..recipe.tuning import FULL, freeze
from .detector_cost import detector_cost, textbook_attention, walk


@dataclass(frozen=True)
class Step:
    """Of one forward and one backward pass.

    Matching boxes with anchors and the choice of proposals are not in it; losses are stand-ins that
    keep one tensor of each output. Every image has as many boxes and masks as the heads take.
    """

    macs: int  # of both passes, and of what checkpointing computes again
    kernels: int  # operators that read or write memory
    peak_bytes: int  # beside parameters, their gradients and the optimizer's state
    trained: int  # parameters that have gradients


def training_step(
    cfg_model: DictConfig,
    images: int,
    size: tuple[int, int],
    amp: bool,
    checkpointing: bool | None = None,
    textbook: bool = False,
    tuning: str = FULL,
    kept: bool = False,
) -> Step:
    """Cost of a training step of the detector that a config describes, on a GPU.

    Args:
        cfg_model: as of `cost.detector_cost`.
        images: of the micro batch.
        size: height and width of an image in pixels.
        amp: whether under autocast to bfloat16.
        checkpointing: whether each block's activations are recomputed in the backward pass; None:
            what the config says. For encoders that have `use_act_checkpoint`.
        textbook: attention that keeps all scores, as detectron2's, instead of the suite's kernel.
        tuning: what of the encoder trains, `train.tuning`.
        kept: whether its maps are there and are not computed, as `training.features` has them.
    """
    detector = build_on_meta(cfg_model)
    _, encoder = encoder_of(detector)
    freeze(encoder, tuning)
    if kept:
        maps = {
            name: (images, spec.channels, size[0] // spec.stride, size[1] // spec.stride)
            for name, spec in encoder.output_shape().items()
        }
        encoder.forward = lambda image: {k: image.new_empty(shape) for k, shape in maps.items()}
    if checkpointing is not None:
        encoder.use_act_checkpoint = checkpointing
    attention = textbook_attention(detector) if textbook else contextlib.nullcontext()
    with attention, torch.device("meta"):
        return count_step(detector, torch.empty(images, 3, *size), amp)


def training_macs(cfg_model: DictConfig, tuning: str = FULL, kept: bool = False) -> int | None:
    """MACs of one image's forward and backward pass, at the size that `detector_cost` counts, with
    attention in textbook form and without what checkpointing computes again.

    Tokens that training leaves out (`mask_ratio`) do not count here; in `detector_cost`, of
    evaluation, they do.

    Args:
        cfg_model, tuning, kept: as of `training_step`.

    Returns:
        None for a variant that trains by the values of its tensors, which are not there to count.
    """
    again = False if "use_act_checkpoint" in cfg_model.backbone else None
    size = detector_cost(cfg_model).size
    try:
        return training_step(cfg_model, 1, size, False, again, True, tuning, kept).macs
    except (RuntimeError, NotImplementedError) as error:
        logging.getLogger("detectron2").info("no MACs of training: %s", error)
        return None


def count_step(detector: nn.Module, image_BCHW: Tensor, amp: bool) -> Step:
    """Cost of a step on images, on their device: on a CPU the step is computed."""
    detector.train()
    trained = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)  # there from the first micro batch on
    mode = _AsOnGpu(amp)
    standing = [*detector.parameters(), *detector.buffers(), image_BCHW]
    ledger = _Ledger([*standing, *(p.grad for p in trained)])
    with _entered_by_blocks(detector, mode, image_BCHW.device), mode, ledger:
        torch.autograd.backward(_loss(detector, image_BCHW))
    return Step(ledger.macs, ledger.kernels, ledger.peak, sum(p.numel() for p in trained))


class _Ledger(TorchDispatchMode):
    """Adds up MACs and operators, and the bytes of storages that are alive, but for `standing`."""

    def __init__(self, standing: list[Tensor]):
        super().__init__()
        self.macs = self.kernels = self.alive = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in standing}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        op = func.overloadpacket
        if op in flop_registry:
            self.macs += flop_registry[op](*args, **kwargs, out_val=out) // 2
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
        self.kernels += not func.is_view and any(t.numel() for t in tensors)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._enter(tensor.untyped_storage())
        self.peak = max(self.peak, self.alive)
        return out

    def _enter(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        if address not in self._known:
            self._known.add(address)
            self.alive += size
            weakref.finalize(storage, self._leave, address, size)

    def _leave(self, address: int, size: int) -> None:
        self._known.remove(address)
        self.alive -= size


# ---- What a GPU does that the meta device does not ----------------------------------------------

_PRODUCTS = {F.linear, F.conv2d, F.conv_transpose2d, F.scaled_dot_product_attention}
_PRODUCTS |= {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, torch.einsum}
_EXACT = {F.layer_norm, F.group_norm, F.softmax, torch.softmax, Tensor.softmax}


class _AsOnGpu(TorchFunctionMode):
    """Autocast, which the meta device has not, and attention by a kernel that keeps no scores.

    Args:
        amp: whether matrix products are in bfloat16, and norms and softmax in float32, as CUDA's
            autocast has them (https://pytorch.org/docs/stable/amp.html).
    """

    def __init__(self, amp: bool):
        super().__init__()
        self.amp = amp

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.amp and (func in _PRODUCTS or func in _EXACT):
            dtype = torch.bfloat16 if func in _PRODUCTS else torch.float32
            args, kwargs = tree_map_only(
                Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, (args, kwargs)
            )
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)


def _attention(
    q_GMND: Tensor,
    k_GMND: Tensor,
    v_GMND: Tensor,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """torch's choice on a GPU: flash attention, and with a mask or in float32 the kernel that it
    calls efficient, to which a mask is a bias."""
    if attn_mask is None and q_GMND.dtype != torch.float32:
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(q_GMND, k_GMND, v_GMND, scale=scale)[0]
    bias = None
    if attn_mask is not None:
        bias = torch.empty_like(attn_mask, dtype=q_GMND.dtype).expand(-1, q_GMND.shape[1], -1, -1)
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    return efficient(q_GMND, k_GMND, v_GMND, bias, True, scale=scale)[0]


@contextlib.contextmanager
def _entered_by_blocks(
    detector: nn.Module, mode: TorchFunctionMode, device: torch.device
) -> Iterator[None]:
    """Each block of the encoder enters `mode` by itself meanwhile: a checkpointed one runs again in
    the backward pass, which torch's function modes do not reach."""
    blocks = getattr(getattr(detector.backbone, "net", None), "blocks", ())
    try:
        for block in blocks:
            block.forward = _within(block.forward, mode, device)
        yield
    finally:
        for block in blocks:
            del block.forward


def _within(
    forward: Callable[..., Tensor], mode: TorchFunctionMode, device: torch.device
) -> Callable[..., Tensor]:
    def run(x: Tensor, *sequence: TokenSequence) -> Tensor:
        with device, mode:
            return forward(x, *sequence)

    return run


def _loss(detector: nn.Module, image_BCHW: Tensor) -> Tensor:
    """A number that every output has a gradient from."""
    boxes = masks = 0
    if heads := getattr(detector, "roi_heads", None):
        boxes = len(image_BCHW) * heads.batch_size_per_image
        masks = int(boxes * heads.positive_fraction)
    (_, (scores, offsets)), *others = walk(detector, image_BCHW, boxes, masks)
    if not heads:
        scores = torch.cat([level.flatten(1) for level in scores], 1)
        loss = sigmoid_focal_loss(scores, torch.zeros_like(scores), reduction="sum")
        return loss + sum(level.square().sum() for level in offsets)
    of_boxes = itertools.chain(*(output for what, output in others if what == "boxes"))
    loss = sum(output.square().sum() for output in (*scores, *offsets, *of_boxes))
    if heads.mask_on:
        # Of a region's masks that of its category has a loss.
        loss = loss + others[-1][1][:, 0].square().sum()
    return loss
