"""One row of a benchmark, in a process of its own: builds a network and runs it when told to."""

import gc
import resource
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing.connection import Connection

import torch
import torch.nn.functional as F
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from .cases import Case
from .implementations import build

MIB = 2**20
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Memory:
    """Peak memory that this process has taken since here, in MiB: on a GPU what torch allocated,
    on a CPU resident memory, so that any allocator counts."""

    def __init__(self, device: str):
        self.device = device
        self.start = 0 if device == "cuda" else _status("VmRSS")

    def reset(self) -> None:
        gc.collect()
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")

    def peak(self) -> float:
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated() / MIB
        return _status("VmHWM") - self.start


def _status(name: str) -> float:
    with open("/proc/self/status") as file:
        (line,) = (line for line in file if line.startswith(name))
    return int(line.split()[1]) / 1024


def limit_memory() -> None:
    """What does not fit fails here, instead of taking the machine down."""
    with open("/proc/meminfo") as file:
        (line,) = (line for line in file if line.startswith("MemAvailable"))
    limit = int((_status("VmData") + 0.9 * int(line.split()[1]) / 1024) * MIB)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))


def seconds_of(run: Callable[[], None], device: str, times: int) -> float:
    """Median over `times` runs."""
    seconds = []
    for _ in range(times):
        if device == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            seconds.append(start.elapsed_time(end) / 1000)
        else:
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _sum_of_squares(outputs) -> Tensor:
    """A loss of whatever a network puts out, with gradients everywhere."""
    if isinstance(outputs, Tensor):
        return outputs.float().square().mean()
    if hasattr(outputs, "feature_maps"):  # transformers
        outputs = outputs.feature_maps
    values = outputs.values() if isinstance(outputs, dict) else outputs
    return sum(_sum_of_squares(value) for value in values)


def _runner(case: Case, net: nn.Module, make_input, device: str) -> Callable[[], None]:
    """One forward pass, or forward and backward."""
    train = case.mode == "train"
    net.to(device).train(train)
    x = make_input(0)
    if isinstance(x, Tensor):
        x = x.to(device)
    # The neck's input has a gradient, as it has behind an encoder.
    leaves = [x] if train and case.module == "neck" else []
    dtype = _DTYPES[case.dtype]

    def autocast():
        return nullcontext() if dtype == torch.float32 else torch.autocast(device, dtype)

    def forward():
        with torch.no_grad(), autocast():
            net(x)

    def forward_backward():
        net.zero_grad()
        for leaf in leaves:
            leaf.requires_grad_().grad = None
        with autocast(), EventStorage():  # detectron2's heads log into one
            outputs = net(x)
        loss = sum(outputs.values()) if case.module == "detector" else _sum_of_squares(outputs)
        loss.backward()

    return forward_backward if train else forward


def measure(case: Case, implementation: str, device: str, pipe: Connection) -> None:
    """Serves one row: sends the MiB of its weights, then for each "run" (seconds, peak MiB); what
    goes wrong as one line of text."""
    try:
        memory = Memory(device)
        net, make_input = build(case, implementation)
        run = _runner(case, net, make_input, device)
        weights = sum(p.numel() * p.element_size() for p in net.parameters()) / MIB
        pipe.send(weights)
        shortest = None
        while pipe.recv() == "run":
            memory.reset()
            if device == "cpu":
                limit_memory()
            times = 1 if shortest is None else max(1, int(1.0 / shortest))
            seconds = seconds_of(run, device, times)
            shortest = min(seconds, shortest or seconds)
            answer = (seconds, memory.peak())
            net.zero_grad()
            if device == "cuda":
                torch.cuda.empty_cache()
            pipe.send(answer)
    except (ValueError, RuntimeError, MemoryError, OSError) as error:
        pipe.send(str(error).splitlines()[0] or type(error).__name__)


def matrix_rate(dtype: str, device: str, pipe: Connection) -> None:
    """Serves the machine's own rate of matrix products: for each "run" sends FLOP/s.

    On a CPU the better of torch's two ways, a matrix product and a 1x1 convolution.
    """
    a_rows, inner, columns = (8192,) * 3 if device == "cuda" else (4096, 1024, 4096)
    a = torch.randn(a_rows, inner, dtype=_DTYPES[dtype], device=device)
    b = torch.randn(columns, inner, dtype=_DTYPES[dtype], device=device)
    x_BCHW = a.view(1, 64, -1, inner).permute(0, 3, 1, 2)
    ways = [lambda: a @ b.T]
    if device == "cpu":  # a GPU's convolutions would round float32 to TF32
        ways.append(lambda: F.conv2d(x_BCHW, b[:, :, None, None]))
    pipe.send(0.0)
    while pipe.recv() == "run":
        with torch.no_grad():
            best = min(seconds_of(way, device, times=5) for way in ways)
        pipe.send((2 * a_rows * inner * columns / best, 0.0))
