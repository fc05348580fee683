"""The benchmark of pre-training: rows compute the same step, and its table follows from them."""

import pytest
import torch
from rich.console import Console

from benchmarks import pretraining
from benchmarks.pretraining import CASES, Case
from experiments.costs import environment

TINY = dict(size="vit-ti", side=32, images=2, rounds=2)


@pytest.mark.parametrize("row", CASES[0].rows)
def test_rows_have_the_same_weights_and_a_loss(row):
    """But for fixed positions: ours keep the encoder's as weights, not the decoder's."""
    case = Case("MAE", (row,), **TINY)
    net, loss = pretraining.build(case, row)
    learned = sum(p.numel() for p in net.parameters() if p.requires_grad)
    ours, _ = pretraining.build(case, "ours")
    assert learned == sum(p.numel() for p in ours.parameters() if p.requires_grad)
    value = loss(torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8))
    assert 0.5 < value.item() < 5


def test_half_of_the_tokens_is_half():
    case = Case("classifier", CASES[1].rows, **TINY)
    ratios = [pretraining.build(case, row)[0].mask_ratio for row in case.rows]
    assert ratios == [0.0, 0.5]


def test_the_table_is_made_of_what_was_measured():
    lines = [
        dict(row="transformers", samples=[(3.0, 400.0), (2.0, 410.0), (2.5, 420.0)], error=""),
        dict(row="ours", samples=[(1.0, 205.0)], error=""),
        dict(row="lost", samples=[], error="out of memory"),
    ]
    found = pretraining.table(Case("MAE", ("transformers", "ours", "lost")), lines)
    assert found.speed[1] == 2.5
    assert found.memory[1] == 0.5
    text = pretraining.shown(found)
    assert "2.5 (2.0 .. 3.0, 3 steps)" in text
    assert "2.50x" in text
    assert "50%" in text
    assert "out of memory" in text


def test_rows_are_measured_in_processes_of_their_own(tmp_path):
    case = Case("MAE", ("transformers", "ours"), **TINY)
    provenance = dict(device="here", commit="1", **environment.versions(("torch",)))
    pretraining.bench(tmp_path, provenance, Console(quiet=True), (case,))
    page = (tmp_path / "pretraining.md").read_text()
    assert page.count("2 steps") == 2
    assert "- commit: 1" in page
