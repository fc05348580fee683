"""What a measurement was made with: device, versions, commit."""

import platform
import re
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import detectron2
import torch

from .. import CHECKOUT, ROOT

_PACKAGES = ("torch", "torchvision", "fvcore", "pycocotools", "lvis", "numpy")


# Of /proc/cpuinfo: x86's names of a processor's family, and Arm's.
_FAMILY = (
    "vendor_id", "cpu family", "model", "model name", "CPU implementer", "CPU architecture",
    "CPU part",
)  # fmt: skip
_LIBRARIES = {
    "BLAS": r"BLAS_INFO=(\w+)",
    "MKL": r"Math Kernel Library Version ([\d.]+)",
    "oneDNN": r"MKL-DNN v([\d.]+)",
}


def device_name(device: str | None = None) -> str:
    """Name of the GPU, or of the processor for "cpu" or where there is no GPU."""
    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def processor() -> dict[str, str]:
    """What decides how a CPU rounds, of the one that trains: its family, the instructions that
    torch takes its kernels for, and torch's libraries; {} where a GPU does it."""
    if torch.cuda.is_available():
        return {}
    info, built = _cpuinfo(), torch.__config__.show()
    libraries = {name: re.search(pattern, built) for name, pattern in _LIBRARIES.items()}
    return {
        "architecture": platform.machine(),
        **{name: info[name] for name in _FAMILY if name in info},
        "capability": torch.backends.cpu.get_cpu_capability(),
        **{name: found[1] for name, found in libraries.items() if found},
    }


def _cpuinfo() -> dict[str, str]:
    """Of the first processor; {} where the system does not say."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def versions(packages: Iterable[str] = _PACKAGES) -> dict[str, str]:
    """Of Python, detectron2 and installed `packages`."""
    found = {package: metadata.version(package) for package in packages}
    return {"python": platform.python_version(), "detectron2": detectron2.__version__, **found}


def git_commit() -> str:
    """The commit of this checkout, "-dirty" behind it if tracked files outside results/ differ; ""
    outside git."""
    if not CHECKOUT:  # what git knows here is the user's own project
        return ""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
    except (OSError, subprocess.CalledProcessError):  # no git on this machine, or no checkout
        return ""
    return f"{commit}-dirty" if changed else commit


def _git(*words: str) -> str:
    command = ["git", "-C", str(ROOT), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
