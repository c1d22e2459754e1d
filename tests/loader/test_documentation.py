"""What docs/security.md promises is tested, by tests of those names."""

from __future__ import annotations

import re
from itertools import takewhile

import pytest

from tests.loader.home import ROOT

HEAD = "| threat | answer | test |"


def rows() -> list[str]:
    """The lines of the table of threats, below its head and the rule under that."""
    lines = (ROOT / "docs" / "security.md").read_text().splitlines()
    start = lines.index(HEAD) + 2
    return list(takewhile(lambda line: line.startswith("|"), lines[start:]))


def test_the_table_is_there() -> None:
    assert len(rows()) > 40


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.split("|")[1].strip())
def test_every_threat_names_tests_that_exist(row: str) -> None:
    module, names = "", re.findall(r"`(?:(test_\w+\.py)::)?(test_\w+)`", row.split("|")[3])
    assert names
    for file, test in names:
        module = file or module
        assert f"def {test}(" in (ROOT / "tests" / "loader" / module).read_text()
