"""The training loop's own additions: accumulation, clipping, averages, rates."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import get_detection_dataset_dicts
from detectron2.utils.events import EventStorage

from experiments import records, studies
from experiments.costs import devices, environment
from experiments.data import catalog
from experiments.jobs import detection
from experiments.jobs.detection import fit_run
from experiments.recipe import config, resolved
from experiments.records import checkpoints
from experiments.training import training_loop
from experiments.training.fit import training_figures
from experiments.training.hooks import Average, LearningRates, Meter
from experiments.training.training_loop import Trainer
from tests.experiments.training.test_distributed import planned


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


def test_average_is_the_exponential_moving_one():
    model = Toy()
    average = Average(model, decay=0.75)
    expected = model.linear.weight.detach().clone()
    for step in range(3):
        with torch.no_grad():
            model.linear.weight.fill_(step)
        average.after_step()
        expected = 0.75 * expected + 0.25 * step
    with average.in_place():
        torch.testing.assert_close(model.linear.weight.detach(), expected)
    torch.testing.assert_close(model.linear.weight.detach(), torch.full((2, 4), 2.0))


def test_each_rate_is_written_under_its_factor():
    model = Toy()
    groups = [
        dict(params=[model.linear.weight], lr=0.1, initial_lr=0.1),
        dict(params=[model.linear.bias], lr=0.02, initial_lr=0.07),
    ]
    rates = LearningRates(torch.optim.SGD(groups), base=0.1, period=2)
    rates.trainer = SimpleNamespace(iter=0)
    with EventStorage(0) as storage:
        rates.after_step()
        assert not storage.latest()
        rates.trainer.iter = 1
        rates.after_step()
        assert {k: v for k, (v, _) in storage.latest().items()} == {"lr/x1": 0.1, "lr/x0.7": 0.02}


def test_the_processors_of_a_resumed_run_are_noted():
    first, second = (Meter(8, None, None) for _ in range(2))
    if not torch.cuda.is_available():
        assert {"capability", "BLAS", "oneDNN"} <= first.processors[0].keys()
    first.processors = [{"model name": "a", "capability": "AVX2"}]
    second.processors = [{"model name": "b", "capability": "AVX2"}]
    second.load_state_dict(first.state_dict())
    cfg = config.load(config.base_path("mini", "vit-mini"))
    state = dict(meter=second.state_dict(), trainer=dict(skipped=0))
    machine = training_figures(cfg, state)["machine"]
    assert machine == {"model name": "a, then b", "capability": "AVX2"}
    old = {k: v for k, v in first.state_dict().items() if k != "processors"}
    assert training_figures(cfg, dict(meter=old, trainer=dict(skipped=0)))["machine"] == {}
    third = Meter(8, None, None)
    third.load_state_dict(old)
    assert third.processors == [environment.processor()]


class Faint(Toy):
    """Its gradients vanish in float16: activations' are below 6e-8."""

    def forward(self, batch):
        hidden = self.linear(torch.stack(batch))
        return {"faint": 1e-9 * (hidden.float() - 1).square().mean()}


@pytest.mark.parametrize("model", [Toy, Faint])
def test_losses_are_scaled_under_float16(model, monkeypatch):
    """Steps that overflow are left out, whatever comes first; then it is float32's curve."""
    torch.manual_seed(1)
    loader = [list(torch.randn(4, 4)) for _ in range(40)]
    found = {}
    for precision in (torch.float32, torch.float16):
        net = model()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1 if model is Toy else 1e8)
        trainer = Trainer(net, loader, optimizer, micro_batches=2, precision=precision)
        if precision is torch.float16 and model is Toy:
            trainer.scale = 2.0**20
        steps = 0
        with EventStorage():
            for trainer.iter in range(20):
                before = net.linear.weight.detach().clone()
                trainer.run_step()
                steps += not torch.equal(before, net.linear.weight)
        found[precision] = net.linear.weight.detach(), steps, trainer
    (exact, all_steps, _), (rough, steps, trainer) = found.values()
    assert all_steps == 20
    if model is Faint:
        assert (steps, trainer.scale) == (20, 2.0**16)
        torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.01)
    else:
        assert steps < 20
        assert trainer.scale < 2.0**20
        other = Trainer(net, loader, optimizer, precision=torch.float16)
        other.load_state_dict(trainer.state_dict())
        assert (other.scale, other.good_steps) == (trainer.scale, trainer.good_steps)
        assert trainer.skipped == 0


def test_a_good_scale_grows(monkeypatch):
    monkeypatch.setattr(training_loop, "_GROWTH", 3)
    net = Faint()
    loader = [list(torch.randn(4, 4)) for _ in range(3)]
    trainer = Trainer(net, loader, torch.optim.SGD(net.parameters()), precision=torch.float16)
    with EventStorage():
        for trainer.iter in range(3):
            trainer.run_step()
    assert (trainer.scale, trainer.good_steps) == (2.0**17, 0)


def test_what_mixed_precision_becomes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for bfloat16, capability, expected in (
        (True, (8, 0), torch.bfloat16),
        (False, (7, 0), torch.float16),
        (False, (6, 1), torch.float32),
    ):
        monkeypatch.setattr(devices, "computes_bfloat16", lambda there=bfloat16: there)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda c=capability: c)
        assert devices.precision(amp=True) is expected
        assert devices.precision(amp=False) is torch.float32


def test_costs_are_counted_once(small_set, tmp_path, monkeypatch):
    run = planned(small_set, tmp_path, "global-vs-conv", "none", {"train.max_iter": 1})
    Path(run.folder).mkdir(parents=True)
    counted = []
    for name in ("detector_cost", "training_macs"):
        count = getattr(detection, name)
        monkeypatch.setattr(
            detection,
            name,
            lambda *words, name=name, count=count: counted.append(name) or count(*words),
        )
    run()
    assert counted == ["detector_cost", "training_macs"]
    record = records.read(Path(run.folder) / "record.json")
    assert record.train_macs > record.macs
    assert "mfu" in (Path(run.folder) / "metrics.json").read_text()


def test_the_precision_that_training_came_to_is_noted(small_set, tmp_path, monkeypatch):
    """Asked for bfloat16: a machine without it, then one with it."""
    words = {"train.amp": True, "train.max_iter": 2, "train.checkpoint_period": 1}
    words |= {"dataloader.train.total_batch_size": 2, "dataloader.train.micro_batch_size": 2}
    run = planned(small_set, tmp_path, "global-vs-conv", "none", words)
    folder = Path(run.folder)
    folder.mkdir(parents=True)
    for there, precision in ((False, "float32"), (True, "float32, then bfloat16 autocast")):
        monkeypatch.setattr(devices, "computes_bfloat16", lambda there=there: there)
        fit_run(run.cfg, run)
        state = checkpoints.read(folder / "model_final.pth")
        assert training_figures(run.cfg, state)["precision"] == precision
        (folder / "model_final.pth").unlink()
        (folder / "model_0000001.pth").unlink(missing_ok=True)


@pytest.mark.parametrize("rows", [("vit", "vit-cascade", "swin"), ("vit-retinanet",)])
def test_heads_draw_the_same_numbers_behind_any_encoder(rows, small_set):
    data = catalog.prepare("mini", small_set["dataset"], small_set["val"])
    dicts = get_detection_dataset_dicts(data.train.register())
    study = studies.find("plain-vs-hierarchical")

    def states(row: str, words: dict, seed: int = 1) -> list[tuple[int, str, tuple]]:
        """Of each micro batch and head of two steps, what the generator would give there."""
        cfg = resolved.resolve(study, study.variant(row, "mini"), "mini", "vit-mini", words)
        mapper = instantiate(cfg.dataloader.train.mapper)
        model = instantiate(cfg.model)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        loader = [[mapper(d) for d in dicts[i : i + 2]] for i in range(0, 8, 2)]
        trainer = Trainer(model, loader, optimizer, micro_batches=2, seed=seed)
        found = []

        def note(name: str) -> None:
            found.append((trainer.iter, trainer.number, name, torch.initial_seed()))
            assert torch.equal(
                torch.get_rng_state(), torch.Generator().manual_seed(found[-1][-1]).get_state()
            )

        for name in ("head", "proposal_generator", "roi_heads"):
            if hasattr(model, name):
                getattr(model, name).register_forward_pre_hook(lambda *_, n=name: note(n))
        with EventStorage():
            for trainer.iter in range(2):
                trainer.run_step()
        return found

    base = states(rows[0], {})
    assert len(base) == len({seed for *_, seed in base}) == (4 if "retinanet" in rows[0] else 8)
    for row in rows:
        assert states(row, {}) == base
    dropping = dict(mask_ratio=0.25, drop_path_rate=0.3, use_rel_pos=False)
    assert states(rows[0], {f"model.backbone.{k}": v for k, v in dropping.items()}) == base
    assert not set(states(rows[0], {}, seed=2)) & set(base)
