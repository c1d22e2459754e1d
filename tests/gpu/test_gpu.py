"""The harness for GPU machines, as far as a machine without a GPU can try it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.stamp import outcome, write_stamp
from tests.gpu.__main__ import counted, has_paths
from tests.gpu.sanitize import TOOLS, main
from tests.gpu.small_calls import DTYPES, HEAD_SIZES, call_everything


@pytest.mark.cpu_only
def test_small_calls_reach_every_operator(kernel) -> None:
    cases = len(DTYPES) * len(HEAD_SIZES)
    with_heads, without = 3 * cases * 5, cases * 3
    assert call_everything(kernel, "cpu") == with_heads + without
    assert call_everything(kernel, "cpu", ["wkv6"], ["bfloat16"]) == len(HEAD_SIZES) * 5


def test_sanitizer_names_its_tools(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["valgrind"])
    printed = capsys.readouterr().err
    assert all(tool in printed for tool in TOOLS)


GREEN = {"device": "cuda", "tests": 9, "failed": 0, "skipped": 0}


@pytest.mark.parametrize(
    ("build", "runs", "expected"),
    [
        ("this", [GREEN, {**GREEN, "device": "cpu"}], "green"),
        ("this", [GREEN, {**GREEN, "failed": 1}], "red"),
        ("this", [{**GREEN, "skipped": 1}], "red"),
        ("this", [{**GREEN, "tests": 0}], "red"),
        ("other", [GREEN], "not run"),
        ("this", [], "not run"),
    ],
)
def test_stamp(tmp_path: Path, build: str, runs: list[dict], expected: str) -> None:
    assert outcome("this", tmp_path / "stamp.json") == "not run"
    write_stamp(build, runs, tmp_path / "stamp.json")
    assert outcome("this", tmp_path / "stamp.json") == expected


def test_counts_of_a_report(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text('<testsuites><testsuite errors="1" failures="2" skipped="3" tests="9"/></testsuites>')
    assert counted(report) == {"tests": 9, "failed": 3, "skipped": 3}


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ([], False),
        (["-k", "wkv7"], False),
        (["tests/ops"], True),
        (["tests/ops/test_cuda.py::test_repeats"], True),
    ],
)
def test_paths_among_arguments(rest: list[str], expected: bool) -> None:
    assert has_paths(rest) is expected
