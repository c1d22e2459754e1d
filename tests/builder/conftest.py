"""Tiny kernel repositories, compiled once and copied."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import pytest

from builder.cuda_wheels import LIBRARY_PARTS, PARTS, RUNTIME
from builder.errors import BuilderError
from builder.lock import LOCK
from builder.toolchain import find_clang
from tests.aarch64.conftest import require_tools
from tests.builder.tiny_kernel import TinyKernel

NVCC = "#!/bin/sh\necho 'release 13.0, V13.0.7'\n"


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


def require_clang() -> None:
    """Skip without clang; where everything is installed for the tests, fail."""
    try:
        find_clang()
    except BuilderError as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(error))


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


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small wheels of CUDA 13.0, whose nvcc says which it is, and of 12.6, with a folder each."""
    folder = tmp_path_factory.mktemp("wheels")
    programs = {"nvidia-cuda-nvcc": "bin/nvcc", RUNTIME: "lib/libcudart.so.13"}
    programs[f"{RUNTIME}-cu12"] = "lib/libcudart.so.12"
    for part, version in [(part, "13.0.7") for part in PARTS] + [(part, "12.6.7") for part in LIBRARY_PARTS]:
        name = part.replace("-", "_")
        inside = "cu13" if part in PARTS else name.removeprefix("nvidia_").removesuffix("_cu12")
        info = f"{name}-{version}.dist-info"
        files = {
            f"nvidia/{inside}/{programs.get(part, f'include/{name}.h')}": NVCC,
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {part}\nVersion: {version}\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/RECORD": "",
        }
        with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
            for path, text in files.items():
                wheel.writestr(path, text)
    return folder


@pytest.fixture
def index(wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index of its own, which holds nothing but these wheels."""
    folder = tmp_path / "index"
    shutil.copytree(wheels, folder)
    use_index(folder, monkeypatch)
    return folder


def use_index(folder: Path, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("PIP_FIND_LINKS", str(folder))
    environment.setenv("PIP_NO_INDEX", "1")
    environment.setenv("PIP_CONFIG_FILE", os.devnull)


@pytest.fixture(scope="session")
def lock_text(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A lock of this machine and those wheels."""
    require_tools()
    require_clang()
    kernel = TinyKernel.create(tmp_path_factory.mktemp("lock") / "tiny")
    with pytest.MonkeyPatch.context() as environment:
        use_index(wheels, environment)
        result = kernel.run("lock")
    assert result.exit_code == 0, result.output
    return (kernel.root / LOCK).read_text()


@pytest.fixture
def locked(tiny: TinyKernel, index: Path, lock_text: str) -> TinyKernel:
    """A repository with such a lock."""
    tiny.write(str(LOCK), lock_text)
    tiny.commit()
    return tiny
