"""Where and of what a measurement was made, so that it can be judged and repeated."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from types import ModuleType

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "cpu"


def describe(kernel: ModuleType) -> dict[str, str | int | bool]:
    """Commit and whether the tree differs from it, the build, processor, threads and versions."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "build": kernel.__name__,
        "cpu": cpu_model(),
        "instruction_set": kernel.cpu_isa(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "kernels": metadata.version("kernels"),
        "python": platform.python_version(),
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


def _git(*arguments: str) -> str:
    result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else "unknown"
