"""What a module may import of the C library and of Python, as PyPI's `kernel-abi-check` knows it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

MANYLINUX = "manylinux_2_28"
PYTHON_ABI = "3.9"


def can_check_abi() -> bool:
    """Whether `kernel-abi-check` is installed; building does not need it, publishing does."""
    return importlib.util.find_spec("kernel_abi_check") is not None


def abi_findings(module: Path) -> Iterator[str]:
    """Symbols that are newer than promised or private; none where `kernel-abi-check` is not installed."""
    if not can_check_abi():
        return
    from kernel_abi_check import (
        IncompatibleAbi3Symbol,
        IncompatibleManylinuxSymbol,
        NonAbi3Symbol,
        ObjectFile,
    )

    file = ObjectFile(str(module))
    for problem in [*file.check_manylinux(MANYLINUX), *file.check_python_abi(PYTHON_ABI)]:
        if isinstance(problem, IncompatibleManylinuxSymbol):
            yield f"not {MANYLINUX}: imports {problem.name} of {problem.dep} {problem.version}"
        elif isinstance(problem, IncompatibleAbi3Symbol):
            yield f"not abi3 of Python {PYTHON_ABI}: imports {problem.name}, new in {problem.version_added}"
        elif isinstance(problem, NonAbi3Symbol):
            yield f"not abi3: imports {problem.name}"
        else:
            yield f"ABI: {problem}"
