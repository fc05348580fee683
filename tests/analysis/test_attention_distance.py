"""Attention distances are those of the definition, token by token, and of closed forms."""

import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from analysis import attention_distance
from backbones import Partition, Rope, ShiftedWindows, ViT, Windows
from backbones.attention import Attention
from backbones.positions import absolute_positions
from tests.analysis.conftest import runs_of


def attention_of(partition: Partition, grid=(6, 7), rel_pos=True, std=0.5, **words) -> Attention:
    torch.manual_seed(0)
    attention = Attention(8, 2, partition, grid, use_rel_pos=rel_pos, **words).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=std)
    return attention


def naive(attention: Attention, x_HWC: torch.Tensor, group) -> list[float]:
    """By the definition, a pair of tokens at a time.

    Args:
        group: which group of attention a token at (row, column) is in, and its place in that.
    """
    H, W, C = x_HWC.shape
    q, k, _ = (
        (x_HWC @ attention.qkv.weight.T + attention.qkv.bias).unflatten(2, (3, 2, C // 2)).unbind(2)
    )
    tokens = [(row, column) for row in range(H) for column in range(W)]
    heads = []
    for head in range(2):
        means = []
        for query in tokens:
            weights, distances = [], []
            (mine, (y, x)), scaled = group(*query), q[query][head] * (C // 2) ** -0.5
            for key in tokens:
                other, (v, u) = group(*key)
                if other != mine:
                    continue
                score = scaled @ k[key][head]
                if attention.use_rel_pos:
                    high, wide = len(attention.rel_pos_h) // 2, len(attention.rel_pos_w) // 2
                    score = score + q[query][head] @ attention.rel_pos_h[y - v + high]
                    score = score + q[query][head] @ attention.rel_pos_w[x - u + wide]
                weights.append(math.exp(score))
                distances.append(math.dist(query, key))
            means.append(np.average(distances, weights=weights))
        heads.append(float(np.mean(means)))
    return heads


def window(row, column):
    return (row // 4, column // 4), (row % 4, column % 4)


def shifted(row, column):
    """Windows of 4 that begin at -2: those at the map's ends have tokens of one end only."""
    return ((row + 2) // 4, (column + 2) // 4), ((row + 2) % 4, (column + 2) % 4)


def everything(row, column):
    return 0, (row, column)


@pytest.mark.parametrize("rel_pos", [False, True])
@pytest.mark.parametrize(
    ("partition", "group"),
    [(Windows(4), window), (ShiftedWindows(4), shifted), (Partition(), everything)],
    ids=["window", "shifted", "global"],
)
def test_it_is_the_definition(partition, group, rel_pos):
    """6 x 7 tokens: windows of 4 have padding below and to the right."""
    attention = attention_of(partition, rel_pos=rel_pos)
    x_1HWC = torch.randn(1, 6, 7, 8, dtype=torch.double)
    with torch.no_grad():
        heads, uniform = attention_distance.of_block(attention, x_1HWC)
        expected = naive(attention, x_1HWC[0], group)
    assert heads.tolist() == pytest.approx(expected, rel=1e-9)
    assert abs(expected[0] - expected[1]) > 1e-3
    assert abs(float(uniform) - expected[0]) > 1e-3


def test_equal_weights_have_closed_forms():
    x_1HWC = torch.randn(1, 64, 64, 8, dtype=torch.double)
    corners = (2 + math.sqrt(2)) / 4  # of 2 x 2 tokens: 0, 1, 1, and the diagonal
    for partition, expected in ((Windows(2), corners), (Windows(1), 0)):
        attention = attention_of(partition, std=0)
        heads, uniform = attention_distance.of_block(attention, x_1HWC)
        assert heads.tolist() == pytest.approx([expected] * 2)
        assert float(uniform) == pytest.approx(expected)
    # Of two points in a unit square: (2 + sqrt 2 + 5 asinh 1) / 15.
    square = (2 + math.sqrt(2) + 5 * math.asinh(1)) / 15
    heads, _ = attention_distance.of_block(attention_of(Partition(), (64, 64), std=0), x_1HWC)
    assert heads.tolist() == pytest.approx([64 * square] * 2, rel=1e-3)


def test_one_token_attends_to_itself():
    heads, uniform = attention_distance.of_block(
        attention_of(Windows(4)), torch.randn(1, 1, 1, 8, dtype=torch.double)
    )
    assert heads.tolist() == [0, 0]
    assert uniform == 0


def encoder(**words) -> ViT:
    torch.manual_seed(0)
    net = ViT(img_size=128, embed_dim=16, depth=4, num_heads=2, window_size=4, **words).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net


def test_blocks_are_looked_at_with_what_they_get():
    net = encoder(propagation="global", count=1)
    images = torch.randn(3, 3, 128, 128)
    found = attention_distance.compute(net, images)
    assert found.plan.tolist() == ["window", "window", "window", "global"]
    assert found.pixels.shape == (4, 2)
    assert not any(module._forward_pre_hooks for module in net.modules())
    # The second block's, by hand.
    with torch.no_grad():
        x = net.blocks[0](net.patch_embed(images) + absolute_positions(net.pos_embed, True, (8, 8)))
        x = net.blocks[1].norm1(x)
        by_image = [attention_distance.of_block(net.blocks[1].attn, one[None])[0] for one in x]
    assert found.pixels[1] == pytest.approx(16 * torch.stack(by_image).mean(0).numpy(), rel=1e-5)
    assert found.uniform[:3] == pytest.approx([found.uniform[0]] * 3)
    assert found.uniform[3] > 1.9 * found.uniform[0]


def test_rotary_positions_make_the_near_ones_louder():
    """q and k of one kind everywhere: where they turn by their places, a token sees itself most."""
    torch.manual_seed(0)
    plain, turning = (
        attention_of(Partition(), std=0, rope=rope) for rope in (None, Rope(3, unit="token"))
    )
    for attention in (plain, turning):
        nn.init.constant_(attention.qkv.bias, 2.0)
    x_1HWC = torch.randn(1, 8, 8, 8, dtype=torch.double)
    apart, _ = attention_distance.of_block(plain, x_1HWC)
    near, uniform = attention_distance.of_block(turning, x_1HWC)
    assert apart.tolist() == pytest.approx([float(uniform)] * 2)
    assert (near < 0.9 * uniform).all()


def test_other_encoders_have_none():
    found = attention_distance.compute(nn.Conv2d(3, 4, 1), torch.randn(2, 3, 8, 8))
    assert found.pixels.size == found.plan.size == 0


def test_kept(trained_run, monkeypatch):
    first = attention_distance.of_run(trained_run, images=2)
    monkeypatch.setattr(attention_distance, "encoder_and_images", None)
    again = attention_distance.of_run(trained_run, images=2)
    assert np.array_equal(first.pixels, again.pixels)
    assert first.plan.tolist() == again.plan.tolist() == ["window", "global"] * 3


def test_picture(trained_run, tmp_path, monkeypatch):
    results = runs_of(trained_run, trained_run)
    written = attention_distance.picture(results, tmp_path / "distance")
    assert [path.suffix for path in written] == [".png", ".svg", ".csv"]
    table = pd.read_csv(written[2])
    assert len(table) == 2 * 6 * 2  # variants, blocks, heads
    found = attention_distance.of_run(trained_run)
    row = table[(table["variant"] == "b") & (table["block"] == 3) & (table["head"] == 1)].iloc[0]
    assert row["distance_px"] == pytest.approx(found.pixels[3, 1])
    assert row["kind"] == "global"
    svg = written[1].read_text()
    assert "heads, global" in svg
    assert svg.count('class="tip"') == 2
    assert attention_distance.picture(runs_of(), tmp_path / "nothing") == []

    none = attention_distance.AttentionDistance(np.zeros((0, 0)), np.zeros(0), np.zeros(0, "U1"))
    hierarchical = trained_run.parent / "hierarchical"
    original = attention_distance.of_run
    monkeypatch.setattr(
        attention_distance, "of_run", lambda path: none if path == hierarchical else original(path)
    )
    written = attention_distance.picture(runs_of(trained_run, hierarchical), tmp_path / "one")
    assert pd.read_csv(written[2])["variant"].unique().tolist() == ["a"]
    shown = re.sub("<[^>]*>", " ", written[1].read_text())
    assert "left out, no plain ViT: b" in " ".join(shown.split())
    assert attention_distance.picture(runs_of(hierarchical), tmp_path / "nothing") == []
