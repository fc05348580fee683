"""What docs/speed.md names exists."""

import re

import pytest

from benchmarks.__main__ import OTHERS
from benchmarks.cases import SUITES
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "speed.md").read_text()


@pytest.mark.parametrize("suite", re.findall(r"make bench SUITE=([\w-]+)", PAGE))
def test_suites_exist(suite):
    assert suite in (*SUITES, *OTHERS)


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)#:]+)\)", PAGE))
def test_links_lead_somewhere(path):
    assert (ROOT / "docs" / path).exists()
