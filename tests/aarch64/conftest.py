"""The aarch64 variant and, around it, a kernel that this machine can load."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.aarch64 import emulated


def require_tools() -> None:
    """Skip without cross compiler and qemu; where everything is installed for the tests, fail."""
    if reason := emulated.missing():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@pytest.fixture(scope="session")
def variant() -> Path:
    require_tools()
    return emulated.build()


@pytest.fixture(scope="session")
def emulated_path() -> Path:
    require_tools()
    return emulated.put_together()
