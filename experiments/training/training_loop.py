"""The training loop: what detectron2's has, and accumulation, several processes, exact resume.

What a step computes is a function of the seed and the iteration. Its images are cut into groups,
whose losses are averaged over; the random numbers of each are seeded by its own number, and anew in
front of each head: what a head draws does not depend on how much the backbone drew. A micro batch,
one forward and backward pass, is one group or several (passes.py). How many, which process runs it,
and how many there are, changes only the order in which gradients are added.
"""

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from detectron2.engine import SimpleTrainer
from detectron2.modeling.meta_arch import RetinaNet, retinanet
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from fvcore.nn import sigmoid_focal_loss
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from backbones import Encoder

from ..costs.devices import autocast
from . import distributed
from .passes import Together, instead

# TorchScript rounds otherwise from its third call in a process on: a resumed run would differ.
retinanet.sigmoid_focal_loss_jit = sigmoid_focal_loss

_GROWTH = 2000  # steps, as of torch's GradScaler

_LOGGER = logging.getLogger("detectron2")  # whose lines are kept in a run's log


def compile_blocks(encoder: nn.Module, **words: Any) -> None:
    """Compile an encoder's blocks one by one, in place; all of an encoder that has no `blocks`.

    Blocks alike share their code: it takes as long as for a few of them. To be called before
    `parallel`, whose `fully_shard` then gathers a block around its compiled code.

    Args:
        words: of `torch.compile`.
    """
    blocks = list(getattr(encoder, "blocks", [encoder]))
    # Each drop-path rate is a variant of the code; beyond the limit torch would give up compiling.
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, 4 * len(blocks))
    for block in blocks:
        block.compile(**words)


def parallel(model: nn.Module, how: str) -> nn.Module:
    """The model as several processes train it; itself where there is one.

    Args:
        how: "ddp": each process holds all of it; "fsdp": weights, gradients and the optimizer's
            averages are spread over the processes, block by block of the encoder (FSDP2).
    """
    if comm.get_world_size() == 1:
        return model
    if how == "ddp":
        model = DistributedDataParallel(
            model, broadcast_buffers=False, gradient_as_bucket_view=True
        )
        _settle_buckets(model)
        return model
    for module in model.modules():
        if isinstance(module, Encoder):
            for block in module.blocks:
                fully_shard(block)
    return fully_shard(model)


def _settle_buckets(model: DistributedDataParallel) -> None:
    """Make all gradients views of the buckets that they are added up in, for good.

    DDP does that in its first backward pass, and makes the buckets anew behind it. Here, before
    there are activations and an optimizer's averages, the copies that this takes do no harm.
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    for _ in range(2):
        with instead(model.module, "forward", sum(p.sum() * 0 for p in weights)):
            model(None).backward()


class Trainer(SimpleTrainer):
    """A step: forward and backward passes of its micro batches, clipping, the optimizer's step.

    Args:
        model: detector, as `parallel` gives it.
        data_loader: this process's micro batches, as `data.stream.training_loader` gives them.
        optimizer: of `model`.
        micro_batches: of one step, of all processes together; losses are averaged over them.
        groups: of a micro batch, as `passes.groups` says.
        seed: of the random numbers in the model.
        precision: what to autocast to; float32: nothing. Under float16 losses are scaled, as by
            torch's GradScaler: a step whose gradients overflow is left out and halves the scale,
            `_GROWTH` good ones double it.
        clip_grad_norm: largest norm of all gradients together, or None.
        may_skip: steps whose losses or gradients are not finite that are left out, before the next
            one raises FloatingPointError.
        last_checkpoint: names it, for that error.
    """

    number: int | None = None  # of the group, in its step, whose pass is under way

    def __init__(
        self,
        model: nn.Module,
        data_loader,
        optimizer: torch.optim.Optimizer,
        micro_batches: int = 1,
        groups: int = 1,
        seed: int = 0,
        precision: torch.dtype = torch.float32,
        clip_grad_norm: float | None = None,
        may_skip: int = 0,
        last_checkpoint: Callable[[], str] = lambda: "none",
    ):
        super().__init__(model, data_loader, optimizer)
        self.micro_batches, self.groups = micro_batches, groups
        self.seed = seed
        self.precision = precision
        self.scale, self.good_steps = 2.0**16 if precision is torch.float16 else 1.0, 0
        self.clip_grad_norm = clip_grad_norm
        self.may_skip, self.skipped = may_skip, 0
        self.last_checkpoint = last_checkpoint
        self.device = next(model.parameters()).device.type
        self.detector = model.module if isinstance(model, DistributedDataParallel) else model
        self.running = _Running(self.detector)
        if groups > 1:
            Together(self.detector, groups, self._begin, self._end)
        if hasattr(self.detector, "backbone"):
            for name, head in self.detector.named_children():
                if name != "backbone":
                    head.register_forward_pre_hook(lambda *_, name=name: self._seed(name))

    def run_step(self) -> None:
        # Views of DDP's buckets stay: passes would else add up beside them.
        views = isinstance(self.model, DistributedDataParallel)
        self.optimizer.zero_grad(set_to_none=not views)
        world = comm.get_world_size()
        mine = range(comm.get_rank(), self.micro_batches, world)
        data_time = 0.0
        passes: list[tuple[list, dict[str, torch.Tensor]]] = []  # image ids and losses
        self.before = self.running.read()
        self.after = torch.zeros_like(self.before)
        for number in mine:
            start = time.perf_counter()
            batch = next(self._data_loader_iter)
            data_time += time.perf_counter() - start
            self.first = number * self.groups
            self._begin(0)
            with self._gradients_shared(number == mine[-1]):
                with autocast(self.device, self.precision):
                    losses = self.model(batch)
                # DDP and FSDP take the mean over processes.
                (sum(losses.values()) * (self.scale * world / self.micro_batches)).backward()
            if self.groups == 1:
                self._end()
            self.number = None
            ids = [image.get("image_id") if isinstance(image, dict) else None for image in batch]
            passes.append((ids, {name: loss.detach() for name, loss in losses.items()}))
        self.after_backward()
        names = list(passes[0][1])
        sums = distributed.sums([*_totals(passes), *self.after.tolist()])
        means = [value / self.micro_batches for value in sums]
        losses = dict(zip(names, means[: len(names)], strict=True))
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if self.precision is torch.float16:
            torch._foreach_div_(gradients, self.scale)
        norm = _whole(get_total_norm(gradients))
        if self._overflows(losses, norm):
            self.running.write(self.before)
            return
        if not math.isfinite(sum(losses.values())) or not math.isfinite(norm):
            self.running.write(self.before)
            self._not_finite(passes, losses, norm)
            return
        self.running.write(torch.tensor(means[len(names) :], dtype=torch.float64))
        if self.clip_grad_norm:
            clip_grads_with_norm_(self.model.parameters(), self.clip_grad_norm, torch.tensor(norm))
        self.optimizer.step()
        storage = get_event_storage()
        storage.put_scalars(
            total_loss=sum(losses.values()), **losses, data_time=data_time, gradient_norm=norm
        )

    def _begin(self, group: int) -> None:
        """Whose number in its micro batch it is."""
        self.number = self.first + group
        self._seed()
        self.running.write(self.before)

    def _end(self) -> None:
        self.after += self.running.read() / self.groups

    def _seed(self, name: str = "") -> None:
        """For this group; for one of the detector's heads. Not outside of a step."""
        if self.number is None:
            return
        words = np.random.SeedSequence([self.seed, self.iter, self.number, *name.encode()])
        torch.manual_seed(int(words.generate_state(1, np.uint64)[0]))

    def _overflows(self, losses: dict[str, float], norm: float) -> bool:
        """Whether the step is to be left out because of the scale, which changes here."""
        if self.precision is not torch.float16 or not math.isfinite(sum(losses.values())):
            return False
        if not math.isfinite(norm) and self.scale > 1:  # at 1 it is no fault of the scale
            self.scale, self.good_steps = self.scale / 2, 0
            _LOGGER.info("iteration %d: left out, loss scale now %g", self.iter, self.scale)
            return True
        self.good_steps += 1
        if self.good_steps == _GROWTH:
            self.scale, self.good_steps = self.scale * 2, 0
        return False

    def _gradients_shared(self, last: bool) -> contextlib.AbstractContextManager:
        """Processes add up their gradients once a step, behind each one's last micro batch."""
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(last)
        elif isinstance(self.model, DistributedDataParallel) and not last:
            return self.model.no_sync()
        return contextlib.nullcontext()

    def _not_finite(self, passes, losses: dict[str, float], norm: float) -> None:
        wrong = [ids for ids, found in passes if not math.isfinite(sum(_totals([(ids, found)])))]
        # Of all processes; gradients alone do not tell which images they are from.
        wrong, everything = zip(*comm.all_gather((wrong, [ids for ids, _ in passes])), strict=True)
        named = itertools.chain(*(wrong if any(wrong) else everything))
        images = ", ".join(str(i) for i in itertools.chain(*named))
        named = ", ".join(f"{k} {v:.4g}" for k, v in losses.items() if not math.isfinite(v))
        message = f"iteration {self.iter}: {named or f'gradients of norm {norm}'}, images {images}"
        if self.skipped < self.may_skip:
            self.skipped += 1
            _LOGGER.warning("%s: step left out, %d of %d", message, self.skipped, self.may_skip)
            return
        raise FloatingPointError(
            f"{message}; last good checkpoint: {self.last_checkpoint()}. Look at these images, "
            "lower optimizer.lr, or leave such steps out with train.may_skip=10"
        )

    def state_dict(self) -> dict[str, Any]:
        """Beside weights, buffers and optimizer."""
        return dict(
            skipped=self.skipped,
            running=self.running.read().cpu(),
            scale=self.scale,
            good_steps=self.good_steps,
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.skipped = state["skipped"]
        self.running.write(state["running"])
        if self.precision is torch.float16 and state.get("scale", 1.0) > 1:  # not from another type
            self.scale, self.good_steps = state["scale"], state["good_steps"]


class _Running:
    """What forward passes change in a detector: batch norm's running statistics, and RetinaNet's
    running number of objects. All micro batches of a step start from the same numbers, and their
    means are what is kept, as if one pass had seen them all."""

    def __init__(self, detector: nn.Module):
        self.detector = detector
        norms = [m for m in detector.modules() if isinstance(m, _BatchNorm)]
        self.buffers = [buffer for norm in norms for buffer in norm.buffers()]
        if isinstance(detector, RetinaNet):
            detector.loss_normalizer = 100.0  # as detectron2 begins
        self.has_normalizer = isinstance(detector, RetinaNet)

    def read(self) -> torch.Tensor:
        """One row, float64."""
        values = [buffer.double().flatten() for buffer in self.buffers]
        if self.has_normalizer:
            values.append(torch.tensor([self.detector.loss_normalizer], dtype=torch.float64))
        return torch.cat([v.cpu() for v in values]) if values else torch.empty(0)

    def write(self, values: torch.Tensor) -> None:
        *parts, rest = values.split([b.numel() for b in self.buffers] + [int(self.has_normalizer)])
        for buffer, part in zip(self.buffers, parts, strict=True):
            buffer.copy_(part.view_as(buffer))
        if self.has_normalizer:
            self.detector.loss_normalizer = rest.item()


def _totals(passes: list[tuple[list, dict[str, torch.Tensor]]]) -> list[float]:
    """Of each loss, the sum over passes."""
    return sum(torch.stack(list(losses.values())).double() for _, losses in passes).tolist()


def _whole(norm: torch.Tensor) -> float:
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
