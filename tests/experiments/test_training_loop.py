"""The training loop's own additions: accumulation, clipping."""

import pytest
import torch
from detectron2.utils.events import EventStorage

from experiments.training_loop import Trainer


class Toy(torch.nn.Module):
    """A detector's interface: a list of inputs to a dict of losses."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(4, 2)

    def forward(self, batch):
        error = self.linear(torch.stack(batch)) - 1
        return {"square": error.square().mean(), "absolute": error.abs().mean()}


def weights_after(steps, *, batch, accumulate, clip=None, data=None):
    torch.manual_seed(1)
    images = torch.randn(steps * batch, 4) if data is None else data
    micro = batch // accumulate
    loader = [list(images[i : i + micro]) for i in range(0, len(images), micro)]
    model = Toy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, loader, optimizer, micro_batches=accumulate, clip_grad_norm=clip)
    with EventStorage():
        for trainer.iter in range(steps):
            trainer.run_step()
    return model.linear.weight.detach()


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_accumulated_micro_batches_are_one_batch(accumulate):
    whole = weights_after(5, batch=8, accumulate=1)
    parts = weights_after(5, batch=8, accumulate=accumulate)
    torch.testing.assert_close(parts, whole)
    assert not torch.allclose(whole, Toy().linear.weight)


def test_clipping_limits_the_step():
    data = torch.randn(4, 4) * 1e6
    moved = weights_after(1, batch=4, accumulate=2, clip=0.5, data=data) - Toy().linear.weight
    assert moved.norm() <= 0.1 * 0.5 + 1e-6
    assert moved.norm() > 0.01
