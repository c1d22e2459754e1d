"""What `make gpu-test` leaves behind about a build, so that no speed is reported of one that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.machine import ROOT

STAMP = ROOT / ".build" / "gpu-test.json"


def write_stamp(build: str, runs: list[dict], path: Path = STAMP) -> None:
    """Record the whole suite's runs: each has a `device` and counts of `tests`, `failed` and `skipped`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"build": build, "runs": runs}, indent=2) + "\n")


def outcome(build: str, path: Path = STAMP) -> str:
    """`green`, `red`, or `not run` when no whole run of the suite is recorded for this build."""
    if not path.is_file():
        return "not run"
    stamp = json.loads(path.read_text())
    if stamp["build"] != build or not stamp["runs"]:
        return "not run"
    passed = all(run["tests"] > 0 and run["failed"] == run["skipped"] == 0 for run in stamp["runs"])
    return "green" if passed else "red"
