"""The page on rooms names rooms and modules that are there."""

import re

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text()


def test_every_room_is_drawn():
    drawn = set(re.findall(r"^  (\w+)/ ", PAGE, re.M))
    there = {
        folder.name
        for top in ("experiments", "backbones")
        for folder in (ROOT / top).iterdir()
        if (folder / "__init__.py").exists()
    }
    assert drawn == there


def test_named_modules_are_there():
    named = set(re.findall(r"`([\w/]+\.py)`", PAGE))
    assert len(named) > 15
    for name in named:
        places = [ROOT, ROOT / "experiments"]
        found = [place / name for place in places if (place / name).exists()]
        assert found or list((ROOT / "experiments").rglob(name)), name
