"""Initial values: by seed and name, distributed as the constructor says."""

import copy
import itertools

import pytest
import torch
from detectron2.config import instantiate
from torch import Tensor, nn

from experiments import studies
from experiments.errors import UserError
from experiments.jobs import pretraining_runs
from experiments.recipe import config, resolved
from experiments.recipe.initial_values import construct
from tests.conftest import ROOT

STUDIES = ("global-vs-conv", "feature-pyramid", "conv-block", "encoder-recipe")


def made(cfg, seed: int = 5) -> dict[str, Tensor]:
    model = construct(lambda: instantiate(cfg.model), seed)
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def rows(name: str) -> list:
    study = studies.find(name)
    rows = [row for row in study.rows("mini") if row.detector in ("", "mask_rcnn")]
    return [resolved.resolve(study, row, "mini", study.sizes["mini"], {}) for row in rows]


def is_random(value: Tensor) -> bool:
    return value.numel() > 1 and bool(value.std() > 0)


def shared(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Names of the parameters that both have, in the same shape, random ones only."""
    return [n for n in a if n in b and a[n].shape == b[n].shape and is_random(a[n])]


# Of the same shape, but its bound follows from the patch's size, Swin's 4 and MViTv2's 7 pixels.
OF_ANOTHER_BOUND = "backbone.bottom_up.patch_embed.proj.bias"


@pytest.mark.parametrize("name", [*STUDIES, "plain-vs-hierarchical"])
def test_rows_of_a_study_begin_with_the_same_values(name):
    base, *others = rows_made = [made(cfg) for cfg in rows(name)]
    if name in ("global-vs-conv", "conv-block"):
        assert all(shared(base, base) == shared(base, other) for other in others)
    for a, b in itertools.combinations(rows_made, 2):
        names = shared(a, b)
        assert {n.split(".")[0] for n in names} >= {"proposal_generator", "roi_heads"}
        assert {n for n in names if not torch.equal(a[n], b[n])} <= {OF_ANOTHER_BOUND}


def test_recipes_of_pretraining_begin_with_the_same_values():
    mae, sup, flip = (
        made(pretraining_runs.resolve(r, "vit-mini", {})) for r in ("mae", "sup", "flip")
    )
    assert [n for n in shared(sup, flip) if not torch.equal(sup[n], flip[n])] == []
    # MAE's encoder begins with Xavier's values: what is made alike is the same.
    same = {n for n in shared(mae, sup) if torch.equal(mae[n], sup[n])}
    assert same >= {"encoder.pos_embed"}


def test_another_seed_is_other_values_and_no_two_parameters_are_alike():
    cfg = rows("global-vs-conv")[0]
    a, again, b = made(cfg), made(cfg), made(cfg, seed=6)
    names = shared(a, b)
    assert all(torch.equal(a[n], again[n]) for n in a)
    assert [n for n in names if torch.equal(a[n], b[n])] == []
    firsts = {tuple((a[n] / a[n].std()).flatten()[:2].tolist()) for n in names}
    assert len(firsts) == len(names)


@pytest.mark.parametrize(
    "path",
    [
        "mini/mask_rcnn_vit_mini",
        "mini/retinanet_vit_mini",
        "mini/cascade_mask_rcnn_swin_mini",
        "mini/mask_rcnn_mvitv2_mini",
        "coco/mask_rcnn_vit_ti",
        "pretraining/mae_vit_mini",
        "pretraining/sup_vit_mini",
    ],
)
def test_values_are_distributed_as_the_constructor_says(path):
    cfg = config.load(ROOT / f"configs/{path}.py", ("model",))
    torch.manual_seed(0)
    plain = dict(instantiate(cfg.model).named_parameters())
    found = made(cfg)
    assert set(found) <= set(plain)
    for name, value in found.items():
        expected = plain[name].detach()
        if is_random(expected):
            assert not torch.equal(value, expected), name
            few = 5 / value.numel() ** 0.5  # standard errors, of std about 1 / sqrt(2 n)
            assert abs(value.std() / expected.std() - 1) < few, name
            assert abs(value.mean() - expected.mean()) < 1.5 * few * expected.std(), name
        else:
            assert torch.equal(value, expected), name


class Own(nn.Module):
    """Draws in the ways that a user's module may."""

    def __init__(self, before: int = 0):
        super().__init__()
        self.before = nn.ModuleList(nn.Linear(3, 3) for _ in range(before))
        torch.rand(before)  # for nothing
        self.scaled = nn.Parameter(torch.randn(4, 4) * 0.1 + 1)
        self.copied = nn.Linear(4, 4)
        with torch.no_grad():
            self.copied.weight.copy_(torch.linalg.qr(torch.randn(4, 4))[0])
        rows_24 = torch.rand(2, 4)
        self.first, self.second = nn.Parameter(rows_24[0]), nn.Parameter(rows_24[1].clone())
        self.data = nn.Parameter(torch.empty(4))
        self.data.data = torch.randn(4)
        self.twice = nn.Parameter(torch.randn(4) - torch.randn(4))
        self.clone = copy.deepcopy(self.copied)
        self.register_buffer("noise", torch.randperm(16), persistent=False)


def test_ways_to_draw():
    a, b = (construct(lambda n=n: Own(n), 1) for n in (0, 2))
    old, new = (dict([*m.named_parameters(), *m.named_buffers()]) for m in (a, b))
    assert [n for n in old if not torch.equal(old[n], new[n])] == []
    assert torch.equal(a.clone.weight, a.copied.weight)
    assert not torch.equal(a.first, a.second)
    assert a.twice.abs().min() > 0
    assert not torch.equal(*(m.weight for m in b.before))


def test_what_is_drawn_next_does_not_depend_on_the_model():
    draws = []
    for before in (0, 2):
        construct(lambda n=before: Own(n), 1)
        draws.append(torch.rand(3))
    assert torch.equal(*draws)


def test_a_constructor_that_draws_otherwise_the_second_time_is_named():
    made = []

    def build() -> nn.Module:
        made.append(nn.Linear(2, 2) if made else nn.Conv2d(2, 2, 1, bias=False))
        return made[-1]

    with pytest.raises(UserError, match="Linear does not draw the same random numbers each time"):
        construct(build, 0)
