"""Every fault that docs/reliability.md lists has the test that it names."""

import re

from tests.conftest import ROOT

PAGE = ROOT / "docs" / "reliability.md"


def test_every_named_test_is_there():
    found, folder = 0, None
    for line in PAGE.read_text().splitlines():
        if not line.startswith("| ") or line.startswith(("| fault", "| ---")):
            continue
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if folder_named := re.search(r"`(tests/\w+/)`", line):
            folder = ROOT / folder_named[1]
        elif cells[-1] != "the same":
            file, name = re.fullmatch(r"`(\w+\.py)::(\w+)`", cells[-1]).groups()
            assert f"def {name}(" in (folder / file).read_text(), line
            found += 1
    assert found > 20
