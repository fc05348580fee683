"""Activation checkpointing that batch norm does not notice."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

_AGAIN = ContextVar("again", default=False)


def recomputed(function: Callable[..., Tensor], *args: Any, of: nn.Module) -> Tensor:
    """`function(*args)`, whose activations are not kept but computed again in the backward pass.

    Args:
        of: the module whose function it is. `TokenBatchNorm`s in it count a batch once in their
            running statistics, as without recomputing.
    """
    # For them only: torch.compile does not trace a context.
    has_batch_norm = any(isinstance(module, _BatchNorm) for module in of.modules())
    words = {"context_fn": lambda: (nullcontext(), _again())} if has_batch_norm else {}
    return checkpoint(function, *args, use_reentrant=False, **words)


def is_again() -> bool:
    """Whether this is the second pass of `recomputed`."""
    return _AGAIN.get()


@contextmanager
def _again() -> Iterator[None]:
    token = _AGAIN.set(True)
    try:
        yield
    finally:
        _AGAIN.reset(token)
