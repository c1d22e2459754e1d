"""The variant with nothing compiled in it, of kernels whose ops are in Python too."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from kernels import get_local_kernel

from builder.check import check_variant
from tests.builder.tiny_kernel import CPU_VARIANT, PLAIN_PY, PLAIN_VARIANT, TinyKernel


@pytest.fixture
def plain(tiny: TinyKernel) -> TinyKernel:
    """A repository with ops in Python, whose variant of them is built."""
    tiny.write("torch-ext/tiny_kernel/plain/__init__.py", PLAIN_PY)
    tiny.commit()
    tiny.build("--variant", PLAIN_VARIANT)
    return tiny


def test_it_needs_no_compiler(plain: TinyKernel) -> None:
    assert not (plain.root / "build" / CPU_VARIANT).exists()
    assert not list(plain.variant(PLAIN_VARIANT).rglob("*.so"))
    kernel = get_local_kernel(plain.root / "build")
    assert kernel.__name__ == f"_tiny_kernel_universal_{plain.git('rev-parse', 'HEAD')[:7]}"
    assert kernel.scale(torch.ones(3)).tolist() == [2.0] * 3


def test_a_compiled_variant_comes_first(plain: TinyKernel) -> None:
    result = plain.build()
    assert CPU_VARIANT in result.output
    assert "_tiny_kernel_cpu_" in get_local_kernel(plain.root / "build").__name__
    assert plain.run("check").exit_code == 0, plain.run("check").output


def test_metadata_names_neither_tools_nor_archs(plain: TinyKernel) -> None:
    metadata = json.loads((plain.variant(PLAIN_VARIANT) / "metadata.json").read_text())
    assert metadata["backend"] == {"type": "cpu"}
    assert metadata["toolchain"] == {}


def test_without_ops_in_python_there_is_none(tiny: TinyKernel) -> None:
    result = tiny.run("build", "--variant", PLAIN_VARIANT)
    assert result.exit_code == 1
    assert f"Unknown variant {PLAIN_VARIANT}" in result.output


def test_what_check_finds(plain: TinyKernel) -> None:
    folder = plain.variant(PLAIN_VARIANT)
    assert list(check_variant(folder, "tiny_kernel")) == []
    (folder / "plain" / "fast.so").write_bytes(b"")
    shutil.move(folder / "plain" / "__init__.py", folder / "plain" / "other.py")
    found = "\n".join(check_variant(folder, "tiny_kernel"))
    assert "fast.so is compiled" in found
    assert "plain/__init__.py is missing" in found
    assert "digest" in found
