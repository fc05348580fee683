"""Parameter groups against detectron2's rule, which reads names; and whatever wraps the model."""

import copy
import itertools
import re
from collections import Counter

import pytest
import torch
from detectron2.config import instantiate
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from detectron2.solver.build import get_default_optimizer_params
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from experiments.recipe import config, show_optim
from experiments.recipe.optim import param_groups
from tests.conftest import ROOT
from tests.experiments.test_cli import assert_told, experiments

PAPER = {"vit-b": (12, 0.7), "vit-l": (24, 0.8), "vit-h": (32, 0.9)}  # Table 11


def detector(scale="coco", size="vit-b", **words):
    cfg = config.load(config.base_path(scale, size))
    cfg.model.backbone.update(**words)
    return config.build_on_meta(cfg.model)


def of_each(groups, key):
    """What each parameter's group says; a parameter is in one group only."""
    found = {p: group[key] for group in groups for p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups)
    return found


@pytest.mark.parametrize("propagation", ["global", "conv"])
def test_learning_rates_are_detectron2s(propagation):
    model = detector(propagation=propagation)
    groups = param_groups(model, lr=1e-4, weight_decay=0.1, layer_decay=0.7)
    ours = of_each(groups, "lr")
    assert len(ours) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        factor = get_vit_lr_decay_rate(name, lr_decay_rate=0.7, num_layers=12)
        assert ours[parameter] == pytest.approx(1e-4 * factor), name


@pytest.mark.parametrize("propagation", ["global", "conv"])
def test_weight_decay_is_detectron2s(propagation):
    """The released recipe: none for torch's norms and for positions."""
    model = detector(propagation=propagation)
    groups = param_groups(model, 1e-4, 0.1, no_weight_decay=["norm", "pos_embed"])
    ours = of_each(groups, "weight_decay")
    theirs = get_default_optimizer_params(
        model, 1e-4, 0.1, weight_decay_norm=0.0, overrides={"pos_embed": {"weight_decay": 0.0}}
    )
    assert ours == {p: group["weight_decay"] for group in theirs for p in group["params"]}
    assert set(ours.values()) == {0.0, 0.1}
    assert {g["weight_decay"] for g in param_groups(model, 1e-4, 0.1, no_weight_decay=[])} == {0.1}


def test_layer_scale_and_norms_of_q_and_k_are_of_their_block_without_decay():
    words = dict(layer_scale=1e-5, qk_norm=True, qkv_bias="qv", mlp="swiglu(norm=true)")
    model = detector(**words)
    groups = param_groups(model, 1.0, 0.1, layer_decay=0.7, no_weight_decay=["norm"])
    rates, decays = of_each(groups, "lr"), of_each(groups, "weight_decay")
    block = model.backbone.net.blocks[3]
    parts = (block.ls1, block.ls2, block.attn.q_norm, block.attn.k_norm, block.mlp.norm)
    parameters = [p for part in parts for p in part.parameters()]
    assert len(parameters) == 8
    assert {rates[p] for p in (*parameters, block.attn.qkv.bias)} == {0.7**9}
    assert {decays[p] for p in parameters} == {0.0}
    assert {decays[p] for p in (block.attn.qkv.bias, block.mlp.w2.weight)} == {0.1}


@pytest.mark.parametrize("stem", ["conv", "patchify_norm"])
def test_whatever_is_below_the_first_block_is_layer_0(stem):
    """Stems of several layers, and CLIP's norm behind the positions; SAM's neck is above all."""
    model = detector(size="vit-b", stem=stem, pre_norm=True, out_chans=256)
    rates = of_each(param_groups(model, 1.0, 0.1, layer_decay=0.7), "lr")
    net = model.backbone.net
    below = {net.pos_embed, *net.patch_embed.parameters(), *net.norm_pre.parameters()}
    assert {rates[p] for p in below} == {0.7**13}
    assert {rates[p] for p in net.neck.parameters()} == {1.0}


class TestWrapped:
    """Groups by the model's own names, found through wrappers that rename and retype modules."""

    @pytest.fixture
    def model(self):
        torch.manual_seed(0)
        return instantiate(config.load(config.base_path("mini", "vit-mini")).model)

    @pytest.fixture
    def process_group(self, tmp_path):
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
        )
        yield
        torch.distributed.destroy_process_group()

    @staticmethod
    def groups_by_name(model, strip):
        groups = param_groups(model, 1e-3, 0.1, layer_decay=0.7)
        rate, decay = of_each(groups, "lr"), of_each(groups, "weight_decay")
        names = {name.replace(strip, "", 1): p for name, p in model.named_parameters()}
        assert len(names) == len(rate)  # every parameter is in a group
        return {name: (rate[p], decay[p]) for name, p in names.items()}

    def check(self, wrapped, model_itself, strip):
        expected = self.groups_by_name(model_itself, "")
        # 6 blocks, what is below them and what is above.
        assert len({lr for lr, _ in expected.values()}) == 8
        assert self.groups_by_name(wrapped, strip) == expected

    def test_sequential(self, model):
        self.check(nn.Sequential(model), model, "0.")

    def test_compiled(self, model):
        compiled = torch.compile(model)
        assert type(compiled) is not type(model)
        self.check(compiled, model, "_orig_mod.")

    def test_an_encoder_compiled_inside(self, model):
        expected = self.groups_by_name(model, "")
        model.backbone.net = torch.compile(model.backbone.net)
        assert self.groups_by_name(model, "_orig_mod.") == expected

    def test_distributed(self, model, process_group):
        self.check(DistributedDataParallel(model), model, "module.")

    def test_compiled_and_distributed(self, model, process_group):
        wrapped = torch.compile(DistributedDataParallel(model))
        self.check(wrapped, model, "_orig_mod.module.")

    def test_fully_sharded(self, model, process_group):
        """FSDP2 replaces classes and parameters in place."""
        whole = copy.deepcopy(model)
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        for block in model.backbone.net.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model.backbone.net, mesh=mesh)
        fully_shard(model, mesh=mesh)
        assert isinstance(model.backbone.net, FSDPModule)
        self.check(model, whole, "")

    def test_encoder_under_another_name(self, model):
        expected = self.groups_by_name(model, "")
        own = nn.Module()
        own.trunk, own.rest = model.backbone.net, nn.Linear(2, 2)
        groups = self.groups_by_name(own, "trunk.")
        assert groups.pop("rest.weight") == groups.pop("rest.bias") == (1e-3, 0.1)
        assert groups == {
            name.removeprefix("backbone.net."): group
            for name, group in expected.items()
            if name.startswith("backbone.net.")
        }

    def test_frozen_parameters_are_in_no_group(self, model):
        frozen = model.backbone.net.blocks[0]
        frozen.requires_grad_(False)
        rates = of_each(param_groups(model, 1e-3, 0.1, layer_decay=0.7), "lr")
        assert set(rates) == set(model.parameters()) - set(frozen.parameters())


class TestMistakes:
    def test_unknown_kind(self):
        with pytest.raises(ValueError, match=r"no_weight_decay=\['bias'\] is unknown"):
            param_groups(nn.Linear(1, 1), 1e-4, 0.1, no_weight_decay=["bias"])

    def test_decay_that_would_apply_to_nothing(self):
        with pytest.raises(ValueError, match=r"layer_decay=0\.7 has no effect: the model has no V"):
            param_groups(detector(size="swin-b"), 1e-4, 0.1, layer_decay=0.7)


class TestShown:
    @pytest.mark.parametrize("size", PAPER)
    @pytest.mark.parametrize("dataset", ["coco", "lvis"])
    def test_the_papers_decay(self, size, dataset):
        """Layer 0 is depth + 1 steps below the head, block i is depth - i."""
        depth, decay = PAPER[size]
        cfg = config.load(config.base_path("coco", size, dataset=dataset))
        lr = cfg.optimizer.lr
        rows = show_optim.rows(cfg, config.build_on_meta(cfg.model))
        rates = {layer: rate for layer, rate, *_ in rows}
        assert rates["absolute positions"] == pytest.approx(lr * decay ** (depth + 1))
        assert rates["patch embedding"] == pytest.approx(lr * decay ** (depth + 1))
        for i in range(depth):
            assert rates[f"block {i}"] == pytest.approx(lr * decay ** (depth - i))
        assert f"block {depth}" not in rates
        for layer in ("pyramid", "region proposals", "box and mask heads"):
            assert rates[layer] == lr

    @pytest.mark.parametrize("path", ["vit_b", "swin_b", "mvitv2_b"])
    @pytest.mark.parametrize("kind", ["mask_rcnn", "retinanet"])
    def test_every_parameter_in_order_of_depth(self, kind, path):
        cfg = config.load(ROOT / f"configs/coco/{kind}_{path}.py")
        model = config.build_on_meta(cfg.model)
        rows = show_optim.rows(cfg, model)
        assert sum(row[3] for row in rows) == len(list(model.parameters()))
        assert sum(row[4] for row in rows) == sum(p.numel() for p in model.parameters())
        layers = list(dict.fromkeys(row[0] for row in rows))
        # A layer's rows lie together: no layer is in two places.
        assert len(rows) == len(set(rows))
        assert [layer for layer, _ in itertools.groupby(row[0] for row in rows)] == layers
        heads = (
            ["RetinaNet's head"]
            if kind == "retinanet"
            else ["region proposals", "box and mask heads"]
        )
        assert layers[-len(heads) - 1 :] == ["pyramid", *heads]
        blocks = [layer for layer in layers if "block" in layer]
        first, last = {
            "vit_b": ("block 0", "block 11"),
            "swin_b": ("stage 0 block 0", "stage 3 block 1"),
            "mvitv2_b": ("block 0", "block 23"),
        }[path]
        assert (blocks[0], blocks[-1]) == (first, last)
        assert layers.index("patch embedding") < layers.index(first)

    def test_no_decay_and_residual_modules_have_rows_of_their_own(self):
        cfg = config.load(config.base_path("coco", "vit-b"))
        cfg.model.backbone.propagation = "conv"
        rows = show_optim.rows(cfg, config.build_on_meta(cfg.model))
        assert Counter(row[0] for row in rows)["block 2"] == 2
        (norms,) = [row for row in rows if row[0] == "block 2" and row[2] == 0]
        assert norms[3:] == (4, 4 * 768)
        assert {row[1] for row in rows if row[0] == "block 2 residual module"} == {1e-4}

    def test_command(self):
        headers = ["weight decay", "tensors", "parameters"]
        words = ["configs/coco/mask_rcnn_vit_l.py", "--overrides", "optimizer.lr=1e-3"]
        done = experiments("show-optim", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        title, head, _, *lines = done.stdout.splitlines()
        assert title.startswith("configs/coco/mask_rcnn_vit_l.py: lr 0.001, layer_decay 0.8, ")
        assert re.split("  +", head) == ["layer", "lr", "of base", *headers]
        assert lines[0].split() == [
            "absolute", "positions", f"{1e-3 * 0.8**25:.3g}", f"{0.8**25:.3g}", "0", "1", "201,728"
        ]  # fmt: skip
        assert lines[-1].split()[0] == "all"

    def test_command_for_a_study(self):
        done = experiments("show-optim", "plain-vs-hierarchical", "--variants", "vit,swin-cascade")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "vit vit-mini: lr 0.002, layer_decay 1" in done.stdout
        assert "swin-cascade swin-mini: lr 0.002" in done.stdout

    @pytest.mark.parametrize(
        ("words", "part"),
        [
            (["global-vs-con"], "did you mean 'global-vs-conv'"),
            (
                ["configs/coco/mask_rcnn_swin_b.py", "--overrides", "param_groups.layer_decay=0.7"],
                "layer_decay=0.7 has no effect",
            ),
        ],
    )
    def test_mistakes(self, words, part):
        assert_told(experiments("show-optim", *words), part)
