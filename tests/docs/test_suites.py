"""What the documents promise is tested: the suites have a command each, and named tests exist."""

import re
import tomllib

from tests.conftest import ROOT


def test_every_suite_has_its_command():
    words = tomllib.loads((ROOT / "pyproject.toml").read_text())
    suites = {m.partition(":")[0] for m in words["tool"]["pytest"]["ini_options"]["markers"]}
    assert "faults" in suites
    makefile = (ROOT / "Makefile").read_text()
    for suite in suites - {"gpu"}:  # a part of `make gpu-check`
        assert re.search(rf"^test-{suite}:.*\n(\t.*\n)*\t.* -m {suite}\b", makefile, re.M), suite


def test_named_tests_are_there():
    named = set()
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        named |= set(re.findall(r"\b(?:tests/[\w/]+/)?test_\w+\.py(?:::\w+)?", page.read_text()))
    assert len(named) > 20
    for name in named:
        path, _, function = name.partition("::")
        files = [file for file in (ROOT / "tests").rglob("test_*.py") if str(file).endswith(path)]
        assert files, name
        assert any(f"def {function}(" in file.read_text() for file in files) or not function, name
