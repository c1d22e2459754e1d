"""The variant in plain PyTorch that `make build` makes beside the compiled one."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from kernels import get_local_kernel

from builder.config import open_repository
from builder.source_state import source_state
from builder.variants import PlainVariant

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def plain_path() -> Path:
    return ROOT / "build" / PlainVariant.name


@pytest.fixture(scope="session")
def plain(plain_path: Path) -> ModuleType:
    if not (plain_path / "metadata.json").is_file():
        pytest.fail(f"build/ holds no {PlainVariant.name}: run `make build` first", pytrace=False)
    kernel = get_local_kernel(plain_path)
    repository = open_repository(ROOT)
    assert kernel.__name__ == source_state(repository).build_id(repository, PlainVariant.label), (
        "build/ is older than its sources: run `make build` first"
    )
    return kernel
