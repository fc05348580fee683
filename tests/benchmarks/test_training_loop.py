"""The benchmark of the training loop: both rows train, on the same images, and are told apart."""

import dataclasses
import time

import pytest
import torch
from torch import nn

from benchmarks import training_loop
from experiments.data import catalog
from experiments.training.hooks import Meter
from experiments.training.training_loop import Trainer


@pytest.fixture
def data(small_set):
    return catalog.prepare("mini", small_set["dataset"], small_set["val"])


@pytest.fixture
def case():
    words = (("dataloader.train.total_batch_size", 4), ("dataloader.train.micro_batch_size", 2))
    case = training_loop.CASES[0]
    return dataclasses.replace(case, words=words, windows=2, window=2, warm_up=1)


def test_what_a_loop_costs_is_seen(case, data, monkeypatch):
    """A hook that takes half a second makes steps of a run longer, not bare ones."""
    after_step = Meter.after_step

    def slow(self):
        after_step(self)
        time.sleep(0.5)

    monkeypatch.setattr(Meter, "after_step", slow)
    samples, checkpoint = training_loop.measured(case, data)
    found = training_loop.table(case, samples, checkpoint).iloc[0]
    assert found.steps == 4
    assert found.suite_seconds > 0.5
    assert found.bare_seconds < found.suite_seconds
    assert found.wall_overhead_min > 10
    assert found.checkpoint_bytes > 1e6
    assert found.checkpoint_between == pytest.approx(100 * found.suite_seconds)
    assert case.name in training_loop.shown(found.to_frame().T)


def test_rows_compute_the_same(monkeypatch):
    """A bare step is a step of the suite's, but for its random numbers: here there are none."""

    class Toy(nn.Linear):
        def forward(self, batch):
            return dict(loss=super().forward(torch.stack(batch)).square().mean())

    torch.manual_seed(0)
    models = Toy(4, 2), Toy(4, 2)
    before = models[0].weight.detach().clone()
    models[1].load_state_dict(models[0].state_dict())
    batches = [list(torch.randn(3, 4)) for _ in range(4)]
    for model, bare in zip(models, (True, False), strict=True):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        trainer = Trainer(model, batches, optimizer, micro_batches=2, clip_grad_norm=0.01)
        images = iter(batches)
        with training_loop.EventStorage():
            for trainer.iter in range(2):
                if bare:
                    training_loop._bare_step(trainer, images)
                else:
                    trainer.run_step()
    torch.testing.assert_close(models[0].weight, models[1].weight)
    assert not torch.allclose(models[0].weight, before)
