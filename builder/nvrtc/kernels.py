"""Sees that an object's host code starts the kernels that its machine code has. A program for build.ninja.

Two compilers made the two, and the runtime finds kernels by the names that both gave them. One that is
missing would show when it is called.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

KERNEL = re.compile(r" \.text\.(\S+)")
STUB = re.compile(r" [tTwW] (\S*__device_stub__\S*)$", re.MULTILINE)


def kernels_of_cubin(path: Path) -> set[str]:
    """Names of the kernels in machine code: each has a section."""
    return set(KERNEL.findall(_run("readelf", "--section-headers", "--wide", str(path))))


def main() -> int:
    """Compare; 1 if they differ."""
    parser = argparse.ArgumentParser(prog="kernels.py", description="Compare the kernels of both parts.")
    parser.add_argument("object", type=Path, help="with the host's code")
    parser.add_argument("cubins", nargs="+", type=Path)
    options = parser.parse_args()
    content = options.object.read_bytes()
    started = len(set(STUB.findall(_run("nm", str(options.object)))))
    for cubin in options.cubins:
        kernels = kernels_of_cubin(cubin)
        unknown = sorted(name for name in kernels if f"{name}\0".encode() not in content)
        if unknown or len(kernels) != started:
            print(
                f"{cubin} has {len(kernels)} kernels, and {options.object} starts {started}. It does not "
                f"name {', '.join(unknown) or 'those of its own'}",
                file=sys.stderr,
            )
            options.object.unlink()
            return 1
    return 0


def _run(*command: str) -> str:
    # readelf warns of what is NVIDIA's own in these files.
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    return subprocess.run(command, stdout=pipe, stderr=nothing, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main())
