"""What loading did with every tensor, by group."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from tabulate import tabulate
from torch import Tensor

# Group of a key, in the words of the design: the first pattern that matches.
_GROUPS = (
    (r"(^|\.)pos_embed$", "absolute positions"),
    (r"(^|\.)patch_embed\.", "patch embedding"),
    (r"(^|\.)registers$", "registers"),
    (r"(^|\.)mask_token$", "mask token"),
    (r"(^|\.)norm_pre\.", "norm before the blocks"),
    (r"\.rel_pos_[hw]$|relative_position", "relative positions"),
    (r"blocks\.\d+\.residual\.", "residual modules"),
    (r"blocks\.\d+\.attn\.[qk]_norm\.", "norms of q and k"),
    (r"blocks\.\d+\.attn\.", "attention"),
    (r"blocks\.\d+\.ls[12]\.", "LayerScale"),
    (r"blocks\.\d+\.(mlp|proj)\.", "MLPs"),
    (r"blocks\.\d+\.norm\d\.(running_|num_batches)", "statistics of batch norms"),
    (r"blocks\.\d+\.norm\d\.", "norms"),
    (r"(^|net\.|bottom_up\.)neck\.[0-3]\.(weight|bias)$", "SAM's neck"),
    (r"^proposal_generator\.", "region proposals"),
    (r"^roi_heads\.", "box and mask heads"),
    (r"^head\.", "RetinaNet's head"),
    (r"\.downsample\.|scale\d_norm|(^|\.)norm\d\.", "layers between stages"),
    (r"^backbone\.", "pyramid"),
)


def group(key: str) -> str:
    """Which part of an encoder or detector a key belongs to."""
    return next((name for pattern, name in _GROUPS if re.search(pattern, key)), key.split(".")[0])


@dataclass
class Account:
    """What was loaded, resized, left out, and left as it was. `str()` of it is a table.

    Args:
        title: file and format.
        loaded: keys of the module, with the numbers of their parameters.
        resized: the same, of what was resized, and how: "14 x 14 -> 64 x 64, bicubic".
        dropped: keys of the file, with the reason and parameters.
        new: keys of the module that the format never has; they keep their initial values.
        missing, unexpected: what strict loading refuses.
        notes: how the module differs from the file's in what is no tensor.
    """

    title: str
    loaded: dict[str, int] = field(default_factory=dict)
    resized: dict[str, tuple[str, int]] = field(default_factory=dict)
    dropped: dict[str, tuple[str, int]] = field(default_factory=dict)
    new: dict[str, int] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    unexpected: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def rows(self) -> list[tuple[str, str, int, int, str]]:
        """(what was done, group, tensors, parameters, how or why), by group."""
        found: dict[tuple[str, str, str], list[int]] = {}
        for what, entries in (
            ("loaded", {k: ("", n) for k, n in self.loaded.items()}),
            ("resized", self.resized),
            ("dropped", self.dropped),
            ("new", {k: ("keeps its initial values", n) for k, n in self.new.items()}),
            ("missing", _with_first_key(self.missing)),
            ("unexpected", _with_first_key(self.unexpected)),
        ):
            for key, (why, size) in entries.items():
                # What is left out has the reason for a group: its keys are the file's own.
                name = "" if what == "dropped" else group(key)
                found.setdefault((what, name, why), []).append(size)
        return [(what, name, len(n), sum(n), why) for (what, name, why), n in found.items()]

    def __str__(self) -> str:
        rows = [(*row[:2], row[2], f"{row[3]:,}", row[4]) for row in self.rows()]
        headers = ("", "group", "tensors", "parameters", "")
        table = tabulate(
            rows, headers, "simple", colalign=("left", "left", "right", "right", "left")
        )
        return "\n".join([self.title, table, *self.notes])


def _with_first_key(entries: dict[str, int]) -> dict[str, tuple[str, int]]:
    first: dict[str, str] = {}
    for key in entries:
        first.setdefault(group(key), f"e.g. {key}")
    return {key: (first[group(key)], size) for key, size in entries.items()}


def sizes(state: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
    """Parameters by key."""
    return {key: math.prod(tensor.shape) for key, tensor in state}
