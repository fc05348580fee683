"""Runs of this machine, side by side."""

from types import SimpleNamespace

import pytest
import torch

from experiments.launching.local import default_jobs


def runs(*threads: int):
    return [SimpleNamespace(cfg=SimpleNamespace(train=SimpleNamespace(threads=n))) for n in threads]


@pytest.mark.parametrize(
    ("threads", "cores", "processes", "jobs"),
    [((1, 1), 4, 1, 4), ((1, 3), 6, 1, 2), ((8,), 4, 1, 1), ((0,), 4, 2, 1), ((1,), 8, 2, 4)],
)
def test_cores_are_shared_out(threads, cores, processes, jobs, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert default_jobs(runs(*threads), cores, processes) == jobs


@pytest.mark.parametrize(("gpus", "processes", "jobs"), [(4, 1, 4), (4, 2, 2), (1, 8, 1)])
def test_each_gpu_has_a_run(gpus, processes, jobs, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert default_jobs(runs(1), 2, processes) == jobs
