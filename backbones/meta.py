"""Modules on the meta device: shapes without memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode


class _ScheduleOnCpu(TorchFunctionMode):
    """Swin and MViT read their drop path rates off a `linspace`, which a meta tensor has not."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        on_cpu = {"device": "cpu"} if func is torch.linspace else {}
        return func(*args, **(kwargs or {}), **on_cpu)


@contextmanager
def on_meta() -> Iterator[None]:
    """What is built here takes no memory, detectron2's SwinTransformer and MViT too."""
    with torch.device("meta"), _ScheduleOnCpu():
        yield
