"""docs/own-data.md names what the validator asks for and takes."""

import pytest

from experiments.data import defects
from experiments.data.kinds_of_defects import KINDS
from experiments.recipe import config
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "own-data.md").read_text()


def test_every_required_key_is_named():
    for keys in defects._KEYS["coco"]:
        for key in keys:
            assert f"`{key}`" in PAGE


def test_what_is_mended_is_told():
    """A row each, and the byte order mark."""
    mends = [kind for kind, (_, (_, told)) in KINDS.items() if "taken" in told]
    rows = PAGE.split("| written | taken for |")[1].split("\n\n")[0].splitlines()[2:]
    assert len(rows) == len({*mends, "polygon without area", "annotation id 0"}) + 1


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("mini/mask_rcnn_vit_mini", 128),
        ("coco/mask_rcnn_vit_b", 1024),
        ("coco/mask_rcnn_vit_ti", 512),
    ],
)
def test_sizes_are_the_configs(name, side):
    assert config.load(ROOT / "configs" / f"{name}.py").dataloader.image_size == side
    assert str(side) in PAGE.split("## What becomes of the images")[1]


def test_readme_leads_here():
    assert "docs/own-data.md" in (ROOT / "README.md").read_text()
