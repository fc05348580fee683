"""What rotary positions cost: rows are what they say, and the table follows from what they took."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from rich.console import Console

from benchmarks import rotary
from benchmarks.implementations import build

VIT, TRAINED, EVA = (replace(case, tokens=4, rounds=2) for case in rotary.CASES)


def test_timms_eva_is_ours():
    """Weights, heads, windows and what places are scaled to."""
    ours, theirs = (build(EVA, row)[0] for row in ("rope of tokens", "timm"))
    sizes = [sum(p.numel() for p in net.parameters() if p.ndim == 2) for net in (ours, theirs)]
    assert sizes[0] == sizes[1]
    attention, rope = ours.blocks[0].attn, ours.blocks[0].attn.rope
    assert set(ours.plan) == {"global"}
    assert attention.num_heads == theirs.blocks[0].attn.num_heads
    (cos,), (sin,) = rope.turn(attention.partition, (4, 4), 64, torch.zeros(1))
    expected = [x.flatten(0, 1).repeat_interleave(2, -1) for x in (sin, cos)]
    torch.testing.assert_close(theirs.rope.get_embed((4, 4)), torch.cat(expected, -1))


def test_only_the_positions_of_a_row_differ():
    nets = [build(VIT, row)[0] for row in VIT.implementations]
    assert [net.blocks[0].attn.rope and net.blocks[0].attn.rope.coordinates for net in nets] == [
        None,
        "map",
        "window",
    ]
    weights = [{k: v for k, v in net.state_dict().items() if "unseen" not in k} for net in nets]
    for other in weights[1:]:
        assert all(torch.equal(v, other[k]) for k, v in weights[0].items())
    with pytest.raises(ValueError, match="timm's EVA-02 has no windows"):
        build(replace(EVA, blocks="4 global"), "timm")


@pytest.mark.slow
def test_a_page_of_small_cases(tmp_path):
    cases = (VIT, replace(TRAINED, implementations=("fused", "rope", "lost")), EVA)
    rotary.bench(tmp_path, dict(device="a box"), Console(quiet=True), cases)
    found = pd.read_csv(tmp_path / "rotary.csv")
    assert list(found.row) == [
        *VIT.implementations,
        "fused",
        "rope",
        "lost",
        "timm",
        "rope of tokens",
    ]
    assert list(found.row[found.error.notna()]) == ["lost"]
    assert (found.time_ratio[[0, 3, 6]] == 1).all()
    assert (found.time_ratio.dropna() > 0).all()
    assert (
        "| vit-b, 4 global, no relative positions, 4 x 4 tokens"
        in (tmp_path / "rotary.md").read_text()
    )
