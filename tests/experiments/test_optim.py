"""Parameter groups against detectron2's rule, which reads names."""

import pytest
import torch
from detectron2.config import instantiate
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from detectron2.solver.build import get_default_optimizer_params

from experiments import config
from experiments.optim import param_groups


def detector(**words):
    cfg = config.load(config.base_path("coco", "vit-b"))
    cfg.model.backbone.update(**words)
    with torch.device("meta"):
        return instantiate(cfg.model)


@pytest.mark.parametrize("propagation", ["global", "conv"])
def test_learning_rates_are_detectron2s(propagation):
    model = detector(propagation=propagation)
    groups = param_groups(model, lr=1e-4, weight_decay=0.1, layer_decay=0.7)
    ours = {p: group["lr"] for group in groups for p in group["params"]}
    assert len(ours) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        factor = get_vit_lr_decay_rate(name, lr_decay_rate=0.7, num_layers=12)
        assert ours[parameter] == pytest.approx(1e-4 * factor), name


@pytest.mark.parametrize("propagation", ["global", "conv"])
def test_weight_decay_is_detectron2s(propagation):
    """The released recipe: none for torch's norms and for positions."""
    model = detector(propagation=propagation)
    groups = param_groups(model, 1e-4, 0.1, no_weight_decay=["norm", "pos_embed"])
    ours = {p: group["weight_decay"] for group in groups for p in group["params"]}
    theirs = get_default_optimizer_params(
        model, 1e-4, 0.1, weight_decay_norm=0.0, overrides={"pos_embed": {"weight_decay": 0.0}}
    )
    assert ours == {p: group["weight_decay"] for group in theirs for p in group["params"]}
    assert set(ours.values()) == {0.0, 0.1}
    assert {g["weight_decay"] for g in param_groups(model, 1e-4, 0.1, no_weight_decay=[])} == {0.1}


def test_a_wrapped_model_keeps_its_groups():
    """Reading names that start with "backbone" would find none."""
    model = detector()
    wrapped = torch.nn.Sequential(model)

    def rates(m):
        return sorted(g["lr"] for g in param_groups(m, 1e-4, 0.1, layer_decay=0.7))

    assert rates(wrapped) == rates(model)
    assert len(set(rates(wrapped))) == 14  # 12 blocks, what is below them, what is above


def test_unknown_kind():
    with pytest.raises(ValueError, match=r"no_weight_decay=\['bias'\] is unknown"):
        param_groups(torch.nn.Linear(1, 1), 1e-4, 0.1, no_weight_decay=["bias"])
