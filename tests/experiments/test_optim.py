"""Parameter groups against detectron2's rule, which reads names."""

import pytest
import torch
from detectron2.config import instantiate
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate

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


def test_no_weight_decay_for_norms_and_positions():
    model = detector(propagation="conv")
    groups = param_groups(model, 1e-4, 0.1, no_weight_decay=["norm", "pos_embed"])
    decays = {p: group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        exempt = "norm" in name or name.endswith("pos_embed") or is_pyramid_norm(name)
        assert decays[parameter] == (0.0 if exempt else 0.1), name
    assert {g["weight_decay"] for g in param_groups(model, 1e-4, 0.1, no_weight_decay=[])} == {0.1}


def is_pyramid_norm(name: str) -> bool:
    """The LayerNorm between the two deconvolutions of p2 has a number for a name."""
    return ".simfp_2.1." in name


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
