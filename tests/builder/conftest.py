"""Tiny kernel repositories, compiled once and copied."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.builder.tiny_kernel import TinyKernel


@pytest.fixture
def tiny(tmp_path: Path) -> TinyKernel:
    """A fresh repository, nothing compiled."""
    return TinyKernel.create(tmp_path / "tiny")


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> TinyKernel:
    """A repository whose cpu variant is built; not to be changed."""
    kernel = TinyKernel.create(tmp_path_factory.mktemp("compiled") / "tiny")
    kernel.build()
    return kernel


@pytest.fixture
def built(compiled: TinyKernel, tmp_path: Path) -> TinyKernel:
    """A copy of the built repository, with its objects, that a test may change."""
    root = tmp_path / "built"
    shutil.copytree(compiled.root, root, symlinks=True)
    return TinyKernel(root)
