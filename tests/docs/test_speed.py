"""docs/speed.md shows lines of measured results, and its commands exist."""

import re

import pytest

from benchmarks.__main__ import OTHERS
from benchmarks.cases import SUITES
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "speed.md").read_text()
SHOWN = re.findall(r"<!-- (\S+) -->\n(.*?)\n<!-- end -->", PAGE, re.S)


@pytest.mark.parametrize(("path", "block"), SHOWN)
def test_every_shown_line_was_measured(path, block):
    measured = (ROOT / path).read_text().splitlines()
    for line in block.splitlines():
        assert line in measured
    assert "- commit: " in "\n".join(measured)


def test_something_is_shown():
    assert SHOWN


@pytest.mark.parametrize("suite", re.findall(r"make bench SUITE=([\w-]+)", PAGE))
def test_suites_exist(suite):
    assert suite in (*SUITES, *OTHERS)


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)#:]+)\)", PAGE))
def test_links_lead_somewhere(path):
    assert (ROOT / "docs" / path).exists()
