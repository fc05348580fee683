"""`compile_blocks`: an encoder's blocks one by one, alone and under FSDP."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from backbones import ViT
from experiments.training.training_loop import compile_blocks
from tests.backbones.test_attention import assert_same, normal_weights, outputs_and_gradients

WORDS = dict(img_size=64, embed_dim=16, num_heads=1, window_size=2, use_rel_pos=True)
IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def results(net) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return outputs_and_gradients(net.train(), IMAGE)


def test_each_block_is_compiled_however_many_there_are():
    """Each drop-path rate is code of its own: more than torch compiles before it gives up."""
    torch.manual_seed(0)
    plain = normal_weights(ViT(**WORDS, depth=10, drop_path_rate=0.3))
    compiled = copy.deepcopy(plain)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=True):
        compile_blocks(compiled, backend="eager", fullgraph=True)
        assert_same(results(compiled), results(plain), 1e-5)
    assert compiled.state_dict().keys() == plain.state_dict().keys()


def test_an_encoder_without_blocks():
    net = nn.Sequential(nn.Linear(2, 2))
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=8):
        compile_blocks(net, backend="eager")
    x = torch.randn(3, 2)
    assert torch.equal(net(x), net[0](x))


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def test_under_fsdp(process_group):
    torch.manual_seed(0)
    plain = normal_weights(ViT(**WORDS, depth=2, count=1))
    sharded = copy.deepcopy(plain)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=8):
        compile_blocks(sharded, backend="eager")
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        for block in sharded.blocks:
            fully_shard(block, mesh=mesh)
        found = results(fully_shard(sharded, mesh=mesh))
    found = {n: v.full_tensor() if hasattr(v, "full_tensor") else v for n, v in found.items()}
    assert_same(found, results(plain), 1e-5)
