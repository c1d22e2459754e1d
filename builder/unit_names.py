"""Finds what nvcc names after the folder it compiles in: what a CUDA source keeps to itself.

What an anonymous namespace holds, and device functions and variables that are `static`, may not meet their
namesakes in other files. So nvcc puts a hash of the source's path into their names, and the same commit
gives other bytes in every folder. Names of kernels and variables stand in the module as they are; those of
functions stand in its compressed device code alone, which is why the sources are looked at too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

CUDA_SUFFIXES = (".cu", ".cuh", ".h")
# The formatter indents nothing in a namespace, so what is not indented belongs to one.
OWN_TO_A_FILE = re.compile(r"namespace \{|([^\s/][^/;={(]*\s)?static\s")
HASHED_NAME = re.compile(rb"_(?:GLOBAL__N_|INTERNAL)_[0-9a-f]{8}_\w*")


def source_findings(path: Path) -> Iterator[str]:
    """Lines of a CUDA source or header after which nvcc hashes its path."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if OWN_TO_A_FILE.match(line):
            yield (
                f"line {number}: `{line}`: nvcc hashes the folder into names that are a file's own; put this "
                f"into `inline namespace {path.parent.name}_{path.stem}_unit`"
            )


def module_findings(module: Path) -> Iterator[str]:
    """Names in a module that hold such a hash, the first of them in full."""
    names = sorted(set(HASHED_NAME.findall(module.read_bytes())))
    if names:
        yield (
            f"holds names hashed from the folder it was compiled in ({len(names)}, such as "
            f"{names[0].decode()}): give them a named namespace, and no `static`"
        )
