"""Fast forms of the encoder's two expensive operations: linear layers and attention.

They compute what `torch.nn.Linear` and the reference in attention.py compute; docs/speed.md says
what was measured. Shape letters beyond those of partition.py:
    T tokens of an image, E = 3 * M * D channels of q, k and v, L offsets of both axes,
    U = groups x heads that are computed at once, n query tokens that are computed at once.
"""

from .cpu_attention import chunked_attention
from .gpu_attention import (
    GROUPED,
    TRITON,
    WHERE,
    folded_attention,
    runs_triton,
    triton_attention,
)
from .linear_layers import Linear, in_chunks
from .relative import relative_tables

__all__ = [
    "GROUPED",
    "TRITON",
    "WHERE",
    "Linear",
    "chunked_attention",
    "folded_attention",
    "in_chunks",
    "relative_tables",
    "runs_triton",
    "triton_attention",
]
