"""What ships for aarch64: libraries and symbols that are there, and vectors in every kernel."""

from __future__ import annotations

import json
from pathlib import Path

from builder.check import check_variant
from builder.elf import instructions, read_shared_object
from tests.aarch64.emulated import MACHINE


def module_of(variant: Path) -> Path:
    (path,) = variant.glob("*.so")
    return path


def test_the_variant_has_no_finding(variant: Path) -> None:
    assert list(check_variant(variant, "flash_rwkv")) == []


def test_it_needs_only_torch_and_the_system(variant: Path) -> None:
    shared = read_shared_object(module_of(variant))
    assert shared.machine == "AArch64"
    assert "libtorch_cpu.so" in shared.needed
    assert not [name for name in shared.needed if "python" in name or "cuda" in name]
    assert shared.exported == [f"PyInit_{json.loads((variant / 'metadata.json').read_text())['id']}"]
    assert shared.unversioned_imports


def test_its_kernels_are_vectors(variant: Path) -> None:
    """One instruction set, and its products are added without a rounding in between."""
    fused = {
        function
        for function, instruction in instructions(module_of(variant), MACHINE)
        if instruction.startswith("fmla")
    }
    for kernel in (
        "Wkv4Forward",
        "Wkv4Backward",
        "Wkv6Forward",
        "Wkv6Backward",
        "Wkv7Forward",
        "Wkv7Backward",
    ):
        assert any(f"flash_rwkv::cpu::neon::{kernel}<" in function for function in fused), kernel
