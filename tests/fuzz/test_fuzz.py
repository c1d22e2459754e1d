"""A few seconds of fuzzing for each reader, the same every time, and what longer runs have found."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.fuzz.__main__ import fuzz
from tests.fuzz.targets import ROOT, TARGETS

needs_atheris = pytest.mark.skipif(
    find_spec("atheris") is None, reason="atheris has wheels for Linux x86-64 and Python up to 3.13 only"
)

# A reader that forgets that a lock may name no version.
CARELESS = """
import json, pathlib, sys
from tests.fuzz import run, targets

def careless(data):
    try:
        value = json.loads(data)
    except ValueError:
        return None
    return value["version"] if isinstance(value, dict) else None

lock = targets.TARGETS["lock"]
targets.TARGETS["careless"] = targets.Target(careless, "json", lock.seeds, lock.write)
run.main("careless", pathlib.Path(sys.argv[1]), ["-runs=5000", "-seed=1"])
"""


@needs_atheris
@pytest.mark.parametrize("name", TARGETS)
def test_only_the_documented_error_comes_out(tmp_path: Path, name: str) -> None:
    result = fuzz(name, tmp_path, "-runs=1000", "-seed=1")
    assert result.returncode == 0, result.stdout
    assert "Done 1000 runs" in result.stdout


@needs_atheris
def test_another_error_is_a_finding(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", CARELESS, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode != 0
    assert "KeyError: 'version'" in result.stderr + result.stdout
    assert list(tmp_path.glob("failed-*"))


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_good(name: str) -> None:
    target = TARGETS[name]
    assert target.seeds()
    for seed in target.seeds():
        assert target.read(target.write(seed)) is not None


@pytest.mark.parametrize("name", ["claim", "check", "build", "lock", "digests"])
def test_deep_nesting_is_refused(name: str) -> None:
    """Python's JSON stops at a depth of a thousand, with an error of its own."""
    TARGETS[name].read(b"[" * 100_000)


@pytest.mark.parametrize("source", ["../a.cpp", "/a.cpp", "b/../../a.cpp", ".", "a\0.cpp"])
def test_sources_outside_the_repository_are_refused(source: str) -> None:
    build = TARGETS["build"]
    short = build.seeds()[-1]
    assert build.read(build.write({**short, "torch": {**short["torch"], "src": [source]}})) is None


@pytest.mark.parametrize("archs", [None, 9, [None]])
def test_capabilities_that_are_none_are_refused_or_text(archs: object) -> None:
    claim = TARGETS["claim"]
    seed = claim.seeds()[0]
    read = claim.read(claim.write({**seed, "backend": {"type": "cuda", "archs": archs}}))
    assert read is None or read.archs == ("None",)
