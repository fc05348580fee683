"""Files of weights, read without executing anything in them."""

from pathlib import Path

import torch

from .contents import State


def read_state(path: Path) -> State:
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return content.get("model", content)
