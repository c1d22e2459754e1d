"""A Hub and a home of its own for each test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from flash_rwkv import patience
from flash_rwkv.lockfile import Lock
from tests.loader.home import DEAD, ROOT, Home
from tests.loader.publishing import VARIANT, TinyKernel, publish, publish_files
from tests.loopback_hub import LoopbackHub


@pytest.fixture(autouse=True)
def nothing_evil_ran() -> Iterator[None]:
    import builtins

    yield
    assert not hasattr(builtins, "flash_rwkv_was_hacked")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    with LoopbackHub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    home = Home(tmp_path / "home", monkeypatch)
    home.folder.mkdir()
    for name in (
        "FLASH_RWKV_LOCAL",
        "FLASH_RWKV_LOCK",
        "LOCAL_KERNELS",
        "HF_HUB_OFFLINE",
        "FLASH_RWKV_SIGNER",
    ):
        monkeypatch.delenv(name, raising=False)
    home.set("HF_HOME", home.folder / "hf")
    home.set("HF_TOKEN_PATH", home.folder / "no-token")
    home.set("KERNELS_CACHE", home.cache)
    home.set("FLASH_RWKV_CACHE", home.store)
    home.set("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "loader" / "src")]))
    home.set("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setattr(patience, "PAUSES", (0.01,) * len(patience.PAUSES))
    home.connect(DEAD)
    return home


@pytest.fixture
def tiny() -> TinyKernel:
    return TinyKernel()


@pytest.fixture
def pinned(hub: LoopbackHub, home: Home, tiny: TinyKernel) -> Lock:
    """The tiny kernel, published and pinned, with nothing of it on this machine yet."""
    publish(hub, {VARIANT: tiny})
    return home.pin(hub)


@pytest.fixture
def build(kernel_path: Path, kernel: object) -> Path:
    """The folder of the variants that the other tests test."""
    return next(
        folder for folder in (kernel_path / "build", kernel_path) if list(folder.glob("*/metadata.json"))
    )


@pytest.fixture
def published(hub: LoopbackHub, home: Home, build: Path) -> Lock:
    """The real kernel, published and pinned."""
    files = {
        f"build/{path.relative_to(build).as_posix()}": path.read_bytes()
        for path in build.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    publish_files(hub, files)
    return home.pin(hub)
