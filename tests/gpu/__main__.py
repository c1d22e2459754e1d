"""`python -m tests.gpu`: the operators' tests on the GPU, then a few on CPU tensors with the same CUDA build.

Leaves `.build/gpu-test.json` behind, by which `python -m benchmarks.gpu` knows that this build is right.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import torch

from benchmarks.stamp import STAMP, write_stamp
from builder.config import open_repository
from builder.source_state import source_state

ROOT = Path(__file__).resolve().parents[2]
REPORTS = ROOT / ".build" / "gpu-test"


def main(arguments: list[str] | None = None) -> int:
    """Run both; 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--jobs", type=int, default=8, help="processes that share the GPU")
    parser.add_argument(
        "rest", nargs="*", metavar="-- ARGUMENT", help="handed on to pytest; then nothing is recorded"
    )
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit(
            f"Torch {torch.__version__} at {torch.__path__[0]} sees no GPU here (`nvidia-smi` lists them)."
        )
    print(f"{torch.cuda.get_device_name()}, Torch {torch.__version__}", flush=True)
    STAMP.unlink(missing_ok=True)
    if options.rest:
        return run_pytest("cuda", options.jobs, options.rest)["status"]
    runs = [
        run_pytest("cuda", options.jobs, []),
        # Of a CUDA build, which carries the CPU kernels too.
        run_pytest("cpu", options.jobs, ["-m", "kernels_ci"]),
    ]
    repository = open_repository(ROOT)
    write_stamp(source_state(repository).build_id(repository, "cuda"), runs)
    for run in runs:
        print("{device}: {tests} tests, {failed} failed, {skipped} skipped, {seconds} s".format(**run))
    return int(any(run["status"] for run in runs))


def run_pytest(device: str, jobs: int, rest: list[str]) -> dict:
    """One run of tests/ops on a device: exit status, counts and seconds."""
    report = REPORTS / f"{device}.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "--device", device, "-n", str(jobs), "--dist", "loadgroup"]
    command += [
        f"--junitxml={report}",
        "-q",
        "--durations=15",
        *(rest if has_paths(rest) else ["tests/ops", *rest]),
    ]
    start = time.monotonic()
    status = subprocess.run(command, cwd=ROOT).returncode
    counts = counted(report) if report.is_file() else {"tests": 0, "failed": 1, "skipped": 0}
    return {"device": device, "status": status, **counts, "seconds": round(time.monotonic() - start)}


def has_paths(rest: list[str]) -> bool:
    """Whether the arguments say themselves which tests to run."""
    return any(word.split("::")[0].endswith((".py", "/")) or Path(word).is_dir() for word in rest)


def counted(report: Path) -> dict[str, int]:
    """Numbers of tests in one of pytest's XML reports."""
    suites = ElementTree.parse(report).getroot().iter("testsuite")
    totals = [
        {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
        for suite in suites
    ]
    sums = {key: sum(total[key] for total in totals) for key in ("tests", "failures", "errors", "skipped")}
    return {
        "tests": sums["tests"],
        "failed": sums["failures"] + sums["errors"],
        "skipped": sums["skipped"],
    }


if __name__ == "__main__":
    sys.exit(main())
