"""One row of a benchmark, in a process of its own: builds a network and runs it when told to."""

import gc
import itertools
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
from torch.autograd import DeviceType

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


# On a GPU: runs that do not count (libraries choose kernels, memory is taken), the fewest that do.
GPU_WARM_UPS = 3
GPU_TIMES = 10


def seconds_of(run: Callable[[], object], device: str, times: int) -> float:
    """Median over `times` runs."""
    return statistics.median(all_seconds_of(run, device, times))


def all_seconds_of(run: Callable[[], object], device: str, times: int) -> list[float]:
    """Of each of `times` runs. A GPU is not waited for in between, so that it never waits for
    this process to launch what is next."""
    seconds = []
    if device == "cuda":
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(times + 1)]
        marks[0].record()
        for mark in marks[1:]:
            run()
            mark.record()
        torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1000 for a, b in itertools.pairwise(marks)]
    for _ in range(times):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds


def kernel_names(run: Callable[[], object], device: str, most: int = 6) -> str:
    """The kernels (on a CPU: operators) that one more run takes longest in, with their shares of
    the time of all; "" where the profiler sees none."""
    activity = torch.profiler.ProfilerActivity
    kinds = [activity.CPU] if device == "cpu" else [activity.CPU, activity.CUDA]
    try:
        with torch.profiler.profile(activities=kinds) as profile:
            run()
            if device == "cuda":
                torch.cuda.synchronize()
        wanted = DeviceType.CPU if device == "cpu" else DeviceType.CUDA
        word = f"self_{'cpu' if device == 'cpu' else 'device'}_time_total"
        seen = [e for e in profile.key_averages() if e.device_type == wanted]
    except RuntimeError:  # of the profiler: the row's times stand
        return ""
    total = sum(getattr(event, word) for event in seen) or 1
    longest = sorted(seen, key=lambda event: -getattr(event, word))[:most]
    return "; ".join(f"{e.key[:100]} {getattr(e, word) / total:.0%}" for e in longest)


def measured(run: Callable[[], object], device: str) -> dict:
    """One row at once, in this process: on a GPU three runs that do not count and ten that do, more
    where they are short, with the peak of allocated memory; on a CPU one and one. One more run
    names its kernels.

    Returns:
        Seconds (their median), fastest, slowest, runs, peak_mib (None on a CPU), kernels.
    """
    warm_ups, least = (GPU_WARM_UPS, GPU_TIMES) if device == "cuda" else (1, 1)
    first = seconds_of(run, device, warm_ups)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = all_seconds_of(run, device, min(max(least, int(0.3 / first)), 100))
    return dict(
        seconds=statistics.median(seconds),
        fastest=min(seconds),
        slowest=max(seconds),
        runs=len(seconds),
        peak_mib=torch.cuda.max_memory_allocated() / MIB if device == "cuda" else None,
        kernels=kernel_names(run, device),
    )


def _sum_of_squares(outputs) -> Tensor:
    """A loss of whatever a network puts out, with gradients everywhere."""
    if isinstance(outputs, Tensor):
        return outputs.float().square().mean()
    if hasattr(outputs, "feature_maps"):  # transformers
        outputs = outputs.feature_maps
    values = outputs.values() if isinstance(outputs, dict) else outputs
    return sum(_sum_of_squares(value) for value in values)


def runner(case: Case, net: nn.Module, make_input, device: str) -> Callable[[], None]:
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
    """Serves one row: sends the MiB of its weights, then for each "run" (seconds, peak MiB) and
    for "kernels" a list of their names; what goes wrong as one line of text."""
    try:
        memory = Memory(device)
        net, make_input = build(case, implementation)
        run = runner(case, net, make_input, device)
        weights = sum(p.numel() * p.element_size() for p in net.parameters()) / MIB
        pipe.send(weights)
        shortest = None
        least = GPU_TIMES if device == "cuda" else 1
        while (asked := pipe.recv()) in ("run", "kernels"):
            if asked == "kernels":
                pipe.send([kernel_names(run, device)])
                continue
            if device == "cuda" and shortest is None:
                shortest = seconds_of(run, device, GPU_WARM_UPS)
            memory.reset()
            if device == "cpu":
                limit_memory()
            times = least if shortest is None else max(least, int(1.0 / shortest))
            seconds = seconds_of(run, device, times)
            shortest = min(seconds, shortest or seconds)
            answer = (seconds, memory.peak())
            net.zero_grad()
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
            if device == "cuda":
                seconds_of(ways[0], device, GPU_WARM_UPS)
            times = GPU_TIMES if device == "cuda" else 5
            best = min(seconds_of(way, device, times) for way in ways)
        pipe.send((2 * a_rows * inner * columns / best, 0.0))
