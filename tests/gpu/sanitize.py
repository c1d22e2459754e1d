"""`python -m tests.gpu.sanitize`: small calls of every operator under compute-sanitizer's tools."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

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
    """Run the tools one after the other; 1 if any of them found something."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.sanitize", description=__doc__)
    parser.add_argument("tools", nargs="*", metavar="TOOL", help=f"default: {', '.join(TOOLS)}")
    names = list(OPERATORS)
    parser.add_argument("--only", nargs="+", metavar="OPERATOR", choices=names, default=names)
    options = parser.parse_args(arguments)
    if unknown := set(options.tools) - set(TOOLS):
        parser.error(f"TOOL must be one of {', '.join(TOOLS)}, got {', '.join(sorted(unknown))}")
    sanitizer = find_sanitizer()
    if not torch.cuda.is_available():
        sys.exit(f"Torch {torch.__version__} sees no GPU here (`nvidia-smi` lists them).")
    LOGS.mkdir(parents=True, exist_ok=True)
    return max([run(sanitizer, tool, options.only) for tool in options.tools or TOOLS])


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


def run(sanitizer: str, tool: str, operators: list[str]) -> int:
    """One tool; its output goes to .build/gpu-sanitize as it comes, the end of it is shown when it fails."""
    command = [sanitizer, "--tool", tool, *TOOLS[tool], "--error-exitcode", "1"]
    command += [sys.executable, "-m", "tests.gpu.small_calls", *operators]
    # Every tensor has memory of its own then, whose bounds and initialisation are known.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    start = time.monotonic()
    log = LOGS / f"{tool}.log"
    with log.open("w") as output:
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
    said = log.read_text()
    # Under a tool that does not know the device nothing runs: the calls themselves must have been made.
    clean = done.returncode == 0 and "calls, all finite" in said
    print(f"{tool}: {'clean' if clean else 'FAILED'} in {time.monotonic() - start:.0f} s", flush=True)
    print("\n".join(said.splitlines()[-3 if clean else -60 :]), flush=True)
    return int(not clean)


if __name__ == "__main__":
    sys.exit(main())
