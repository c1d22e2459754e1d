"""The benchmarks measure what they say: baselines compute the operators, bars and tables tell the truth."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from benchmarks import cpu, machine, report
from benchmarks.accuracy import relative_error
from benchmarks.baseline import baselines
from benchmarks.cases import OPERATORS, make_case
from benchmarks.measure import bars
from benchmarks.timing import medians

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("operator", OPERATORS)
def test_baselines_compute_the_operator(kernel: ModuleType, operator: str) -> None:
    case = make_case(operator, batch=2, tokens=33, heads=3)
    exact = case.map(torch.Tensor.double)
    y, state = getattr(kernel.reference, operator)(*exact.inputs.values(), **case.options)
    loops = baselines(operator, case.inputs, case.given_decay(kernel.reference), threads=2)
    assert len({loop.name for loop in loops}) == (1 if operator == "wkv4" else 4)
    assert sum(loop.plain for loop in loops) == (1 if operator == "wkv4" else 2)
    for loop in loops:
        loop.run()
        assert relative_error(loop.y, y) < 1e-5, loop.name
        assert relative_error(loop.state, state) < 1e-5, loop.name


def test_baseline_refuses_what_it_would_misread() -> None:
    case = make_case("wkv7", batch=1, tokens=4, heads=2).map(lambda x: x.transpose(1, 2))
    with pytest.raises(ValueError, match="contiguous float32"):
        baselines("wkv7", case.inputs, case.inputs["w"], threads=1)


def test_medians_take_turns_and_leave_the_first_round_out() -> None:
    calls: list[str] = []
    runs = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    assert set(medians(runs, repeats=2, calls=2)) == {"a", "b"}
    assert "".join(calls) == "aabb" * 3


def result(**changes: object) -> dict:
    """A result that holds every bar."""
    return {
        "operator": "wkv7",
        "shape": {"B": 1, "T": 1024, "H": 32, "N": 64},
        "forward_ms": 4.0,
        "forward_backward_ms": 12.0,
        "step_us": 30.0,
        "plain_ms": 10.0,
        "fastest_ms": 8.0,
        "forward_over_plain": 0.4,
        "forward_over_fastest": 0.5,
        "forward_backward_over_forward": 3.0,
        "errors": {"forward": 1e-7, "backward": 2e-7, "step": 3e-7, "baseline": 1e-7},
        **changes,
    }


def test_bars_hold() -> None:
    assert len(bars(result())) == 4
    assert all(bar["holds"] for bar in bars(result()).values())


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("forward / plain C++ loop", {"forward_over_plain": 0.46}),
        ("forward + backward / forward", {"forward_backward_over_forward": 5.6}),
        ("step, µs", {"step_us": 51.0}),
        ("error", {"errors": {"forward": 1e-7, "backward": 2e-5, "step": 1e-7}}),
        ("error", {"errors": {"forward": float("nan"), "backward": 1e-7, "step": 1e-7}}),
    ],
)
def test_bars_are_missed(name: str, changes: dict) -> None:
    missed = [bar for bar, found in bars(result(**changes)).items() if not found["holds"]]
    assert missed == [name]


def test_a_small_run_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    arguments = ["wkv6", "--repeats", "2", "--tokens", "32", "--heads", "2", "--threads", "1"]
    try:
        status = cpu.main([*arguments, "--out", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / "wkv6.json").read_text())
    assert written["shape"] == {"B": 1, "T": 32, "H": 2, "N": 64}
    assert written["machine"]["threads"] == 1
    assert written["errors"]["forward"] <= 1e-5
    assert ("FAIL" in printed) == bool(status)


def test_readme_section_shows_the_measured_numbers(tmp_path: Path) -> None:
    somewhere = {
        "cpu": "Some CPU",
        "instruction_set": "avx2",
        "threads": 2,
        "torch": "2.13.0",
        "commit": "c" * 40,
    }
    section = report.section([result(machine=somewhere)])
    assert "Some CPU (avx2), 2 threads" in section
    assert (
        "| `wkv7` | 4.00 | 1.0e-07 | 10.00 | 0.40 | 8.00 | 0.50 | 12.00 | 2.0e-07 | 30 | 3.0e-07 |" in section
    )
    text = report.insert(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n", section)
    assert text == f"before\n{report.BEGIN}\n{section}\n{report.END}\nafter\n"
    report.plot([result(machine=somewhere)], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_report_refuses_results_of_different_runs(tmp_path: Path) -> None:
    for name in ("wkv6", "wkv7"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"machine": {"commit": name}}))
    with pytest.raises(SystemExit, match="different commits"):
        report.load(tmp_path)


def test_a_child_that_is_still_there_counts_as_own_work() -> None:
    before = machine._own_seconds()
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        child.stdout.readline()
        assert machine._own_seconds() - before >= 0.25
    finally:
        child.communicate()


def test_other_work_is_what_this_process_did_not_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(machine.time, "perf_counter", iter([0.0, 10.0]).__next__)
    monkeypatch.setattr(machine, "_busy_seconds", iter([100.0, 117.0]).__next__)
    monkeypatch.setattr(machine, "_own_seconds", iter([5.0, 20.0]).__next__)
    assert machine.watch_other_work()() == pytest.approx(2 / 20)


def test_a_disturbed_run_is_not_reported(tmp_path: Path) -> None:
    assert machine.disturbed({"other_work": 0.02}) is None
    (tmp_path / "wkv7.json").write_text(json.dumps({"machine": {"other_work": 0.4}}))
    with pytest.raises(SystemExit, match="40% of the cores"):
        report.load(tmp_path)


def test_upstream_benchmark_verifies(kernel: ModuleType) -> None:
    from benchmarks.benchmark_wkv import WkvBenchmark

    workloads = [
        name.removeprefix("benchmark_") for name in dir(WkvBenchmark) if name.startswith("benchmark_")
    ]
    assert len(workloads) == 8
    for workload in workloads:
        benchmark = WkvBenchmark()
        benchmark.kernel = kernel
        benchmark.setup()
        getattr(benchmark, f"benchmark_{workload}")()
        expected = getattr(benchmark, f"verify_{workload}")()
        assert relative_error(benchmark.out, expected) < 1e-5, workload


def test_kernels_benchmark_finds_and_runs_it(kernel_path: Path, tmp_path: Path) -> None:
    """`kernels benchmark .` in a checkout: every workload runs and agrees with its reference."""
    (tmp_path / "build").symlink_to(kernel_path / "build")
    (tmp_path / "benchmarks").mkdir()
    shutil.copy(ROOT / "benchmarks" / "benchmark_wkv.py", tmp_path / "benchmarks")
    command = [
        Path(sys.executable).with_name("kernels"),
        "benchmark",
        ".",
        "--iterations",
        "1",
        "--warmup",
        "0",
    ]
    done = subprocess.run(
        [*command, "--output", "results.json"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"wkv\d_\w+ +│ +1 │", done.stdout + done.stderr)) == 8
    assert (tmp_path / "results.json").is_file()
