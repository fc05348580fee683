"""README shows what was measured, and its two commands are the ones that CI runs."""

import re

import pandas as pd
import pytest

from analysis import tables
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
RESULT = ROOT / "results" / "mini" / "global-vs-conv"


def test_the_table_is_the_measured_one():
    start, end = "<!-- results/mini/global-vs-conv/table.md -->\n", "\n<!-- end"
    shown = README.split(start)[1].split(end)[0]
    measured = (RESULT / "table.md").read_text()
    assert shown in measured
    summary = tables.summary(pd.read_csv(RESULT / "table.csv").astype({"seeds": int}))
    assert max(map(len, shown.splitlines())) <= tables.WIDTH
    assert tables.render(summary) == shown


def test_its_provenance_stands_beside_it():
    measured = (RESULT / "table.md").read_text()
    for line in ("- command: ", "- device: ", "- versions: ", "- commit: ", "- finished: "):
        assert line in measured


def test_ci_runs_the_test_command_of_the_readme():
    assert "make test " in README.split("```")[1]
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_lead_somewhere(path):
    assert (ROOT / path).exists()


def test_every_make_target_in_the_readme_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"^(?:\| `|`)?make ([a-z][a-z-]+)", README, re.M)):
        pattern = "ablation-%" if target.startswith("ablation-") else target
        assert f"\n{pattern}:" in makefile, target
