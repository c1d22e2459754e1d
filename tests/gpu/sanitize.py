"""`python -m tests.gpu.sanitize`: small calls of every operator under compute-sanitizer's tools.

Each operator and dtype is a process of its own, several side by side: the tools keep one processor core
busy, and the GPU hardly.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from tests.gpu.small_calls import DTYPES
from tests.helpers.operators import OPERATORS

ROOT = Path(__file__).resolve().parents[2]
LOGS = ROOT / ".build" / "gpu-sanitize"
TOOLS = {
    # Torch probes the driver with calls that fail; a launch of ours that fails raises an error by itself.
    "memcheck": ["--leak-check", "no", "--report-api-errors", "no"],
    # Races are looked for in our kernels alone: Torch's would take most of the time.
    "racecheck": ["--kernel-regex", "kns=flash_rwkv", "--racecheck-report", "all"],
    "initcheck": [],
}
TOOLKITS = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer", "/opt/nvidia/compute-sanitizer")


def main(arguments: list[str] | None = None) -> int:
    """Run the tools; 1 if any of them found something."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.sanitize", description=__doc__)
    parser.add_argument("tools", nargs="*", metavar="TOOL", help=f"default: {', '.join(TOOLS)}")
    names = list(OPERATORS)
    parser.add_argument("--only", nargs="+", metavar="OPERATOR", choices=names, default=names)
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="processes side by side  (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    if unknown := set(options.tools) - set(TOOLS):
        parser.error(f"TOOL must be one of {', '.join(TOOLS)}, got {', '.join(sorted(unknown))}")
    sanitizer = find_sanitizer()
    if not torch.cuda.is_available():
        sys.exit(f"Torch {torch.__version__} sees no GPU here (`nvidia-smi` lists them).")
    LOGS.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        runs = itertools.product(options.tools or TOOLS, options.only, DTYPES)
        return max(pool.map(lambda one: run(sanitizer, *one), runs))


def find_sanitizer() -> str:
    """compute-sanitizer on PATH, in $CUDA_HOME, or where toolkits put it."""
    home = os.environ.get("CUDA_HOME")
    folders = [os.environ.get("PATH", ""), *([f"{home}/bin"] if home else []), *TOOLKITS]
    path = shutil.which("compute-sanitizer", path=os.pathsep.join(folders))
    if path is None:
        sys.exit(
            "compute-sanitizer is not here: it comes with the CUDA toolkit; put it on PATH or set CUDA_HOME."
        )
    return path


def run(sanitizer: str, tool: str, operator: str, dtype: str) -> int:
    """One tool; its output goes to .build/gpu-sanitize as it comes, the end of it is shown when it fails."""
    command = [sanitizer, "--tool", tool, *TOOLS[tool], "--error-exitcode", "1"]
    command += [sys.executable, "-m", "tests.gpu.small_calls", operator, dtype]
    # Every tensor has memory of its own then, whose bounds and initialisation are known.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    start = time.monotonic()
    log = LOGS / f"{tool}-{operator}-{dtype}.log"
    with log.open("w") as output:
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
    said = log.read_text()
    # Under a tool that does not know the device nothing runs: the calls themselves must have been made.
    clean = done.returncode == 0 and "calls, all finite" in said
    seconds = time.monotonic() - start
    result = said.splitlines()[-1:] if clean else ["FAILED", *said.splitlines()[-60:]]
    print(f"{tool} {operator} {dtype}, {seconds:.0f} s: " + "\n".join(result), flush=True)
    return int(not clean)


if __name__ == "__main__":
    sys.exit(main())
