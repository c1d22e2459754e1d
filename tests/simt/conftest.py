"""The emulated kernels, compiled once."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from types import ModuleType

import pytest

from tests.simt import emulated

KERNELS = Path(__file__).resolve().parent / "kernels"


@pytest.fixture(scope="session")
def simt_kernel() -> ModuleType:
    """The CUDA kernels of this checkout, or of that in FLASH_RWKV_SIMT_SOURCES, on CPU tensors."""
    return emulated.load(Path(os.environ.get("FLASH_RWKV_SIMT_SOURCES", emulated.ROOT)))


@pytest.fixture(scope="session")
def racing_kernel() -> ModuleType:
    """The same, in which races end a launch."""
    return emulated.load(Path(os.environ.get("FLASH_RWKV_SIMT_SOURCES", emulated.ROOT)), races=True)


@pytest.fixture(scope="session")
def library() -> ctypes.CDLL:
    """The small kernels of `kernels/`."""
    return emulated.load_library(*sorted(KERNELS.glob("*.cu")))


@pytest.fixture(scope="session")
def racing_library() -> ctypes.CDLL:
    return emulated.load_library(*sorted(KERNELS.glob("*.cu")), races=True)
