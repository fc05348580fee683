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
    """The commit of this checkout, "-dirty" behind it if tracked files outside results/ differ; ""
    outside git."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
    except (OSError, subprocess.CalledProcessError):  # no git on this machine, or no checkout
        return ""
    return f"{commit}-dirty" if changed else commit


def _git(*words: str) -> str:
    command = ["git", "-C", str(ROOT), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
