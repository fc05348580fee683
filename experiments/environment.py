"""What a measurement was made with: device, versions, commit."""

import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import detectron2
import torch

from .config import ROOT

_PACKAGES = ("torch", "torchvision", "fvcore", "pycocotools", "lvis", "numpy")


def device_name(device: str | None = None) -> str:
    """Name of the GPU, or of the processor for "cpu" or where there is no GPU."""
    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions(packages: Iterable[str] = _PACKAGES) -> dict[str, str]:
    """Of Python, detectron2 and installed `packages`."""
    found = {package: metadata.version(package) for package in packages}
    return {"python": platform.python_version(), "detectron2": detectron2.__version__, **found}


def git_commit() -> str:
    """The commit of this checkout, with "-dirty" behind it if files differ; "" outside git."""
    options = ("--always", "--abbrev=12", "--dirty", "--exclude=*")
    command = ["git", "-C", str(ROOT), "describe", *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # no git on this machine
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
