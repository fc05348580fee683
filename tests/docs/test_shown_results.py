"""Lines of results that pages show are lines of files that commands of this repository wrote."""

import re

import pytest

from tests.conftest import ROOT

SHOWN = [
    (page.name, *shown)
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for shown in re.findall(r"<!-- (results/\S+) -->\n(.*?)\n<!-- end -->", page.read_text(), re.S)
]


@pytest.mark.parametrize(("page", "path", "block"), SHOWN)
def test_every_shown_line_was_measured(page, path, block):
    measured = (ROOT / path).read_text().splitlines()
    for line in block.splitlines():
        assert line in measured
    assert "commit" in "\n".join(measured)


@pytest.mark.parametrize("page", ["README.md", "speed.md"])
def test_something_is_shown(page):
    assert page in [page for page, _, _ in SHOWN]
