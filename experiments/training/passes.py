"""Several groups of images in one pass of a big device, with the result of as many passes.

A group is what losses are averaged over and what has random numbers of its own: the recipe's
`dataloader.train.loss_batch_size`. A pass of `micro_batch_size` images runs the backbone on all of
its groups at once, and what is behind it, whose losses and samples are a batch's, on one after the
other.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from detectron2.modeling.meta_arch import GeneralizedRCNN, RetinaNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import StochasticDepth

from backbones import Encoder
from backbones.drop_path import DropPath

_LOGGER = logging.getLogger("detectron2")  # whose lines are kept in a run's log
_OURS = ("backbones.", "detectron2.", "torch.", "torchvision.")


def groups(model: nn.Module, images: int, group: int) -> int:
    """How many groups of a pass the model can take at once: all, or one.

    Args:
        images: of a pass.
        group: images of a group.
    """
    count = images // group
    if count == 1:
        return 1
    if why := _inseparable(model):
        _LOGGER.info("%s: %d images a pass, not %d, with the same result", why, group, images)
        return 1
    return count


def _inseparable(model: nn.Module) -> str:
    """Why what one group computes would depend on the others; "" if it does not."""
    encoder = getattr(getattr(model, "backbone", None), "net", None)
    if not isinstance(model, GeneralizedRCNN | RetinaNet) or not isinstance(encoder, Encoder):
        return "only detectors with a plain ViT run several groups at once"
    if any(isinstance(module, _BatchNorm) and module.training for module in model.modules()):
        return "batch norm is over a group"
    modules = list(model.backbone.modules())
    draws = (_DropoutNd, StochasticDepth)
    drops = [m for m in modules if isinstance(m, draws) and m.training]
    masks = encoder.training and encoder.mask_ratio
    if masks or any(m.p and not isinstance(m, DropPath) for m in drops):
        return "the encoder draws for a group as a whole"
    if foreign := [m for m in modules if not type(m).__module__.startswith(_OURS)]:
        return f"{type(foreign[0]).__name__} may know its group"
    return ""


class Together:
    """Takes the place of a detector's `forward` in training.

    Args:
        detector: for which there are several `groups`.
        count: of the groups of a pass.
        begin: called with a group's number in the pass, in front of all that it draws.
        end: called behind its losses.
    """

    def __init__(
        self,
        detector: nn.Module,
        count: int,
        begin: Callable[[int], None],
        end: Callable[[], None],
    ):
        self.detector, self.count, self.begin, self.end = detector, count, begin, end
        self.alone = detector.forward
        detector.forward = self

    def __call__(self, batch: list[dict]) -> dict[str, Tensor]:
        """Images of all groups, in order -> the means of their losses."""
        size = len(batch) // self.count
        parts = [batch[i : i + size] for i in range(0, len(batch), size)]
        images = [self.detector.preprocess_image(part) for part in parts]
        self._draw([])
        features: dict[str, Tensor] = {}
        if len({part.tensor.shape for part in images}) == 1:  # else padded as none alone would be
            self._draw(parts)
            features = self.detector.backbone(torch.cat([part.tensor for part in images]))
        sums: dict[str, Tensor] = {}
        for i, part in enumerate(parts):
            self.begin(i)
            own = {name: x[i * size : (i + 1) * size] for name, x in features.items()}
            with contextlib.ExitStack() as stack:
                stack.enter_context(instead(self.detector, "preprocess_image", images[i]))
                if own:
                    stack.enter_context(instead(self.detector.backbone, "forward", own))
                losses = self.alone(part)
            self.end()
            sums = {name: sums.get(name, 0) + loss for name, loss in losses.items()}
        return {name: loss / self.count for name, loss in sums.items()}

    def _draw(self, parts: list[list[dict]]) -> None:
        """What drop path draws for each group by itself; for none, it draws as it goes."""
        # Frozen blocks draw nothing.
        blocks = [block for block in self.detector.backbone.net.blocks if block.training]
        paths = [block.drop_path for block in blocks]
        drawn: list[list[Tensor]] = [[] for _ in paths]
        for i, part in enumerate(parts):
            self.begin(i)
            for path, of_groups in zip(paths, drawn, strict=True):
                of_groups.append(path.draw(len(part), self.detector.device))
        for path, of_groups in zip(paths, drawn, strict=True):
            path.drawn = torch.cat(of_groups, 1) if of_groups else None


@contextlib.contextmanager
def instead(module: nn.Module, name: str, result: Any) -> Iterator[None]:
    """The method gives that result in the block, whatever it is called with."""
    setattr(module, name, lambda *_: result)
    try:
        yield
    finally:
        delattr(module, name)
