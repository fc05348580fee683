"""docs/encoder.md: its words are those that there are, its figures those that are counted."""

import re

import pytest

from backbones import ACTIVATIONS, MLPS, NORMS, POSITIONS, SIZES, STEMS, build_encoder
from backbones.positions import RESIZE
from experiments import studies
from experiments.costs.detector_cost import detector_cost
from experiments.costs.training_cost import training_macs
from experiments.jobs import runs
from experiments.recipe import resolved
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "encoder.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines()]
ROWS = [row for row in ROWS if len(row) > 3]


def values() -> dict[str, list[str]]:
    found, word = {}, ""
    for name, value, *_ in ROWS:
        word = name or word
        found.setdefault(word.strip("`"), []).append(value.strip("`"))
    return found


def test_words():
    found = values()
    for word, registry in (
        ("stem", STEMS),
        ("block_norm", NORMS),
        ("activation", ACTIVATIONS),
        ("positions", POSITIONS),
        ("mlp", MLPS),
    ):
        own = [name for name, entry in registry if entry.__module__.startswith("backbones.")]
        assert sorted(found[word]) == sorted(own)
    assert tuple(found["positions_resize"]) == RESIZE
    for word, values_of_word in found.items():
        if word in ("stem", "positions", "block_norm", "activation", "mlp"):
            for value in values_of_word:
                build_encoder("vit-mini", **{word: value})


def test_arguments_in_words():
    """Each that the page shows is one, on an encoder and in a config."""
    shown = set(re.findall(r"`([a-z_]+)=([a-z+]+\([^`]*\))`", PAGE))
    assert len(shown) > 5
    study = studies.find("encoder-recipe")
    for word, value in shown:
        build_encoder("vit-ti", **{word: value}, img_size=224)
        resolved.resolve(
            study, study.variants[0], "mini", "vit-mini", {f"model.backbone.{word}": value}
        )


def test_sizes():
    named = set(re.findall(r"`((?:dinov2|dinov3|eva02|pe)-[\w+-]+|sam3)`", PAGE))
    assert named == {size for size in SIZES if "vit-" not in size}


def test_rows():
    rows = re.findall(r"^\| ([\w-]+) \| \d", PAGE, re.M)
    assert sorted(rows) == sorted(v.name for v in studies.find("encoder-recipe").variants)


@pytest.mark.slow
def test_costs():
    study = studies.find("encoder-recipe")
    for row in runs.rows(study, "coco", "vit-b", {}):
        cost = detector_cost(row.cfg.model)
        params, encoder = cost.encoder.params / 1e6, cost.encoder.macs / 1e9
        detector, training = cost.detector.macs / 1e9, training_macs(row.cfg.model) / 1e9
        shown = f"| {row.variant.name} | {params:.2f} | {encoder:.1f} | {detector:.1f} | "
        assert f"{shown}{training:.0f} |" in PAGE
