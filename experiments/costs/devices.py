"""What a device can do: GPUs by name, and this machine."""

import contextlib
import functools
import os
import re
import time
from dataclasses import dataclass

import torch

from ..errors import unknown


@dataclass(frozen=True)
class Gpu:
    """A GPU as its vendor describes it."""

    title: str
    tflops: float  # dense bfloat16 products with float32 sums; 2 FLOPs are 1 MAC
    memory_gb: float  # 1e9 bytes
    source: str
    name: str  # how torch calls it, a regular expression


_H100 = "NVIDIA H100 datasheet: half of the rate with sparsity"
GPUS = {
    "a100-40gb": Gpu("NVIDIA A100 40 GB", 312, 40, "NVIDIA A100 datasheet", "A100.*40GB"),
    "a100-80gb": Gpu("NVIDIA A100 80 GB", 312, 80, "NVIDIA A100 datasheet", "A100.*80GB"),
    "h100": Gpu("NVIDIA H100 SXM", 989.5, 80, _H100, "H100 80GB HBM3"),
    "h100-pcie": Gpu("NVIDIA H100 PCIe", 756.5, 80, _H100, "H100 PCIe"),
    "h200": Gpu("NVIDIA H200 SXM", 989.5, 141, _H100.replace("H100", "H200"), "H200$"),
    "l40s": Gpu("NVIDIA L40S", 362.05, 48, "NVIDIA L40S datasheet", "L40S$"),
    "rtx-4090": Gpu(
        "NVIDIA GeForce RTX 4090",
        165.2,
        24,
        "NVIDIA Ada GPU architecture whitepaper, appendix A",
        "RTX 4090$",
    ),
}


def find_gpu(name: str) -> Gpu:
    """The GPU of that name; UserError with the nearest one if there is none."""
    if name not in GPUS:
        raise unknown("device", name, GPUS)
    return GPUS[name]


def peak_macs_per_second(dtype: torch.dtype) -> float | None:
    """What a share of this process's device is a share of: its vendor's rate of products in
    bfloat16; None for a GPU that is not in `GPUS`, and for another type on one; on a CPU, what its
    threads reach in large products."""
    if not torch.cuda.is_available():
        return macs_per_second(dtype)
    name = torch.cuda.get_device_name()
    known = [gpu for gpu in GPUS.values() if re.search(gpu.name, name)]
    return known[0].tflops * 1e12 / 2 if known and dtype is torch.bfloat16 else None


@functools.cache
def macs_per_second(dtype: torch.dtype, side: int = 1024, seconds: float = 0.5) -> float:
    """Of products of two square matrices on this CPU; the fastest counts, others were disturbed."""
    a = torch.rand(side, side).to(dtype)
    a @ a  # threads start
    start, times = time.perf_counter(), []
    while not times or time.perf_counter() - start < seconds:
        began = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - began)
    return side**3 / min(times)


def computes_bfloat16() -> bool:
    """Whether this machine's accelerator, or else its CPU, multiplies in bfloat16 natively.

    To ask a GPU makes a context on it: not for a process that only starts runs.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def precision(amp: bool) -> torch.dtype:
    """What `train.amp` becomes on this machine, the type that products are computed in: bfloat16;
    float16 on a GPU that has products of these alone, as V100 and T4; else float32."""
    if not amp:
        return torch.float32
    if computes_bfloat16():
        return torch.bfloat16
    halves = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (7, 0)
    return torch.float16 if halves else torch.float32


def autocast(device: str, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Autocast to a `precision`; none to float32."""
    if dtype is torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device, dtype)


def memory_here() -> int:
    """Bytes of this machine's GPU, or else of its main memory."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
