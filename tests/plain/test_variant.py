"""Which machines load plain PyTorch, and that every other loads what was compiled for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kernels import get_local_kernel
from kernels._rust import Metadata
from kernels.backends import CANN, CPU, CUDA, XPU, Metal, ROCm
from kernels.variants import _resolve_variant_for_system, parse_variant
from packaging.version import Version

from builder.variants import PlainVariant
from flash_rwkv.variants import decide, preferred
from tests.builder.tiny_kernel import CPU_VARIANT, CUDA126_VARIANT, CUDA_VARIANT

ROOT = Path(__file__).resolve().parents[2]
SYSTEMS = {
    "cpu": (CPU(), "x86_64", "linux", "2.11", CPU_VARIANT),
    "newer cpu": (CPU(), "x86_64", "linux", "2.13", CPU_VARIANT),
    "cuda": (CUDA(Version("13.0")), "x86_64", "linux", "2.12", CUDA_VARIANT),
    "old torch": (CPU(), "x86_64", "linux", "2.6", PlainVariant.name),
    "cuda 12": (CUDA(Version("12.6")), "x86_64", "linux", "2.11", CUDA126_VARIANT),
    "newer cuda 12": (CUDA(Version("12.9")), "x86_64", "linux", "2.12", CUDA126_VARIANT),
    "old cuda 12": (CUDA(Version("12.4")), "x86_64", "linux", "2.11", PlainVariant.name),
    "arm": (CPU(), "aarch64", "linux", "2.11", PlainVariant.name),
    "rocm": (ROCm(Version("7.0")), "x86_64", "linux", "2.11", PlainVariant.name),
    "xpu": (XPU(Version("2025.3")), "x86_64", "linux", "2.11", PlainVariant.name),
    "npu": (CANN(Version("8.3")), "aarch64", "linux", "2.11", PlainVariant.name),
    "mac": (Metal(), "aarch64", "darwin", "2.11", PlainVariant.name),
    "windows": (CPU(), "x86_64", "windows", "2.11", PlainVariant.name),
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_what_kernels_takes(system: str) -> None:
    backend, cpu, os, torch_version, expected = SYSTEMS[system]
    names = (PlainVariant.name, CUDA126_VARIANT, CUDA_VARIANT, CPU_VARIANT)
    fitting, _ = _resolve_variant_for_system(
        variants=[parse_variant(name) for name in names],
        selected_backend=backend,
        cpu=cpu,
        os=os,
        torch_version=Version(torch_version),
        torch_cxx11_abi=True,
        tvm_ffi_version=None,
    )
    assert fitting[0].variant_str == expected


def test_what_the_loader_takes() -> None:
    files = {"metadata.json": object()}
    both = decide({PlainVariant.name: files, CPU_VARIANT: files}, "cpu")
    assert preferred(both, "here") == CPU_VARIANT
    assert [decision.reason for decision in both] == ["", ""]
    assert preferred(decide({PlainVariant.name: files}, None), "here") == PlainVariant.name


def test_the_compiled_build_is_preferred(plain, plain_path: Path) -> None:
    assert "_universal_" not in get_local_kernel(ROOT / "build").__name__
    assert sorted(plain.__all__) == sorted(get_local_kernel(ROOT / "build").__all__)


def test_nothing_is_compiled(plain, plain_path: Path) -> None:
    assert not list(plain_path.rglob("*.so"))
    metadata = Metadata.read_from_file(plain_path / "metadata.json")
    assert metadata.id == plain.__name__
    assert metadata.backend.archs is None
    assert plain.cpu_isa() == "torch"
    assert torch.ops.__getattr__(plain.__name__).has_chunks(7, 64, 0, False) is False
