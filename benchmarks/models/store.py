"""The results of a machine, `models.json`: runs of one build for some of the models add up."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.models.shapes import SIZES, VERSIONS

NAME = "models.json"
# Runs may differ in when they were, what else the machine did, and that the results of the first are there.
MAY_DIFFER = ("date", "other_work", "tests", "dirty")


def load(folder: Path) -> dict | None:
    """`machine` and `rows`; None where nothing was measured."""
    path = folder / NAME
    return json.loads(path.read_text()) if path.is_file() else None


def add(folder: Path, machine: dict, row: dict) -> None:
    """Write a row in place of the same model's, and drop what comes from another build or machine."""
    before = load(folder)
    rows = before["rows"] if before and _same(before["machine"], machine) else []
    if rows and machine.get("other_work") is not None:  # the worst counts
        machine = {**machine, "other_work": max(machine["other_work"], before["machine"]["other_work"] or 0)}
    rows = [one for one in rows if _key(one) != _key(row)] + [row]
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": machine, "rows": sorted(rows, key=_key)}, indent=1, ensure_ascii=False)
    (folder / NAME).write_text(text + "\n")


def _key(row: dict) -> tuple[int, int]:
    return VERSIONS.index(row["version"]), SIZES.index(row["size"])


def _same(one: dict, other: dict) -> bool:
    return all(one.get(key) == other.get(key) for key in one.keys() | other.keys() if key not in MAY_DIFFER)
