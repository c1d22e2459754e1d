"""What docs/security.md promises is tested, by tests of those names."""

from __future__ import annotations

import re

import pytest

from tests.loader.home import ROOT

ROWS = [
    row
    for row in (ROOT / "docs" / "security.md").read_text().splitlines()
    if row.startswith("|") and "`test_" in row
]


def test_the_table_is_there() -> None:
    assert len(ROWS) > 15


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_every_threat_names_tests_that_exist(row: str) -> None:
    module, names = "", re.findall(r"`(?:(test_\w+\.py)::)?(test_\w+)`", row.split("|")[3])
    assert names
    for file, test in names:
        module = file or module
        assert f"def {test}(" in (ROOT / "tests" / "loader" / module).read_text()
