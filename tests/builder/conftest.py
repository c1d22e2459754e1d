"""Tiny kernel repositories, compiled once and copied."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import pytest

from builder.cuda_wheels import PARTS
from tests.builder.tiny_kernel import TinyKernel

WHEELS_VERSION = "13.0.7"


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
    return copied(compiled, tmp_path / "built")


@pytest.fixture(scope="session")
def locked_build(tmp_path_factory: pytest.TempPathFactory) -> TinyKernel:
    """A repository whose cpu variant is built with its lock; not to be changed."""
    kernel = TinyKernel.create(tmp_path_factory.mktemp("locked") / "tiny")
    kernel.lock()
    kernel.commit()
    kernel.build("--locked")
    return kernel


@pytest.fixture
def release(locked_build: TinyKernel, tmp_path: Path) -> TinyKernel:
    """A copy of that, which a test may change and publish."""
    return copied(locked_build, tmp_path / "release")


def copied(kernel: TinyKernel, root: Path) -> TinyKernel:
    shutil.copytree(kernel.root, root, symlinks=True)
    return TinyKernel(root)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index of its own: small wheels of CUDA 13.0, whose nvcc says which it is."""
    folder = tmp_path / "index"
    folder.mkdir()
    for part in PARTS:
        name = part.replace("-", "_")
        program = "bin/nvcc" if part == "nvidia-cuda-nvcc" else f"include/{name}.h"
        info = f"{name}-{WHEELS_VERSION}.dist-info"
        files = {
            f"nvidia/cu13/{program}": "#!/bin/sh\necho 'release 13.0, V13.0.7'\n",
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {part}\nVersion: {WHEELS_VERSION}\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/RECORD": "",
        }
        with zipfile.ZipFile(folder / f"{name}-{WHEELS_VERSION}-py3-none-any.whl", "w") as wheel:
            for path, text in files.items():
                wheel.writestr(path, text)
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


@pytest.fixture
def locked(tiny: TinyKernel, index: Path) -> TinyKernel:
    """A repository with a lock of this machine."""
    result = tiny.run("lock")
    assert result.exit_code == 0, result.output
    tiny.commit()
    return tiny
