"""Where and of what a measurement was made, so that it can be judged and repeated."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "cpu"

# Share of the cores that other work may take while something is timed.
QUIET = 0.05


def describe(kernel: ModuleType, commit: str | None = None) -> dict[str, str | int | float | bool | None]:
    """Commit and whether the tree differs from it, the build, processor, threads and versions.

    Args:
        kernel: the one that is measured.
        commit: what the tree holds, where Git cannot tell; whether anything differs is not known then.
    """
    return {
        "commit": commit or _git("rev-parse", "HEAD"),
        "dirty": None if commit else bool(_git("status", "--porcelain", "--untracked-files=no")),
        "build": kernel.__name__,
        "cpu": cpu_model(),
        "instruction_set": kernel.cpu_isa(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "kernels": metadata.version("kernels"),
        "python": platform.python_version(),
    }


def describe_gpu(device: torch.device) -> dict[str, str | None]:
    """Name, driver, versions of CUDA and Triton; of a CPU, on which the benchmark can be tried, its name."""
    if device.type != "cuda":
        return {"gpu": cpu_model(), "driver": None, "cuda": torch.version.cuda, "triton": None}
    return {
        "gpu": torch.cuda.get_device_name(device),
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition(
            "\n"
        )[0],
        "cuda": torch.version.cuda,
        "triton": metadata.version("triton"),
    }


def cpu_model() -> str:
    """The processor's name, as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )


def watch_other_work() -> Callable[[], float | None]:
    """Start watching; call the result for the share of all cores that other processes have used since.

    None where Linux's /proc/stat is not there to tell.
    """
    start = time.perf_counter(), _busy_seconds(), _own_seconds()

    def share() -> float | None:
        if start[1] is None:
            return None
        elapsed = (time.perf_counter() - start[0]) * (os.cpu_count() or 1)
        others = (_busy_seconds() - start[1]) - (_own_seconds() - start[2])
        return round(max(0.0, others / elapsed), 3)

    return share


def disturbed(machine: dict) -> str | None:
    """Why the times of a run are not to be trusted, if they are not."""
    share = machine["other_work"]
    if share is None or share <= QUIET:
        return None
    return f"Other work took {share:.0%} of the cores meanwhile: the times mean little. Run it again alone."


def _busy_seconds() -> float | None:
    """What all processes and other virtual machines have used of these cores since this one started."""
    try:
        ticks = list(map(int, Path("/proc/stat").read_text().split()[1:9]))
    except OSError:
        return None
    user, nice, system, _idle, _iowait, interrupts, soft_interrupts, stolen = ticks
    return (user + nice + system + interrupts + soft_interrupts + stolen) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    """What this process and its children have used, finished or not."""
    return sum(os.times()[:4]) + sum(map(_seconds_of, _living_children()))


def _living_children() -> list[str]:
    """Process numbers."""
    lists = Path("/proc/self/task").glob("*/children")
    return [child for children in lists for child in children.read_text().split()]


def _seconds_of(process: str) -> float:
    """What a process and its own finished children have used."""
    try:
        # Its name, in brackets, may have any character in it.
        fields = Path("/proc", process, "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _git(*arguments: str) -> str:
    return _output("git", *arguments)


def _output(*command: str) -> str:
    """What a command prints; "unknown" if it fails."""
    try:
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return result.stdout.strip() if result.returncode == 0 else "unknown"
