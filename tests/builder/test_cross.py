"""Variants for an architecture other than this machine's."""

from __future__ import annotations

import json
import shutil

import pytest

from builder.config import open_repository
from builder.elf import read_shared_object
from builder.machines import MACHINES, machine_of_flags, machine_of_variant
from tests.aarch64.conftest import require_tools
from tests.builder.tiny_kernel import AARCH64_VARIANT, CPU_VARIANT, CUDA_VARIANT, PLAIN_VARIANT, TinyKernel

NEWER_ATOMIC = """
void newer_atomic(int* x) { asm volatile(".arch armv8.1-a\\n ldaddal w0, w0, [%0]" : : "r"(x) : "memory"); }
void (*volatile keep)(int*) = newer_atomic;
"""


@pytest.fixture
def crossed(tiny: TinyKernel) -> TinyKernel:
    require_tools()
    tiny.build("--variant", AARCH64_VARIANT)
    return tiny


def test_it_is_built_and_checked(crossed: TinyKernel) -> None:
    shared = read_shared_object(crossed.module(AARCH64_VARIANT))
    assert shared.machine == "AArch64"
    assert {"libtorch_cpu.so", "libc.so.6"} <= set(shared.needed)
    metadata = json.loads((crossed.variant(AARCH64_VARIANT) / "metadata.json").read_text())
    assert metadata["toolchain"]["cxx"].startswith("aarch64-linux-gnu-g++")
    assert crossed.run("check").exit_code == 0, crossed.run("check").output


def test_flags_of_one_architecture_leave_the_others_out(crossed: TinyKernel) -> None:
    ninja = (crossed.root / ".build" / AARCH64_VARIANT / "build.ninja").read_text()
    assert "scale.cpp" in ninja
    assert "isa_avx512.cpp" not in ninja
    sections = open_repository(crossed.root).sections_for("cpu", "x86_64")
    assert "cpu_avx512" in [section.name for section in sections]


def test_newer_instructions_are_found(crossed: TinyKernel) -> None:
    crossed.append("kernel_src/scale.cpp", NEWER_ATOMIC)
    crossed.build("--variant", AARCH64_VARIANT)
    result = crossed.run("check")
    assert result.exit_code == 1
    assert "newer_atomic(int*) is outside its instruction set's namespace but uses `ldaddal" in result.output


def test_a_module_of_another_architecture_is_found(crossed: TinyKernel, compiled: TinyKernel) -> None:
    shutil.copyfile(compiled.module(), crossed.module(AARCH64_VARIANT))
    output = crossed.run("check").output
    assert f"which is not what {AARCH64_VARIANT} promises" in output


@pytest.mark.parametrize(
    ("flags", "machine"),
    [
        (("-O3", "-std=c++20", "-mtune=native", "-march=native"), None),
        (("-O3", "-mavx2", "-mfma", "-mf16c"), "x86_64"),
        (("-march=x86-64-v3",), "x86_64"),
        (("-march=armv8.2-a+fp16",), "aarch64"),
        (("-mcpu=neoverse-v1",), "aarch64"),
    ],
)
def test_the_machine_of_flags(flags: tuple[str, ...], machine: str | None) -> None:
    assert machine_of_flags(flags) == machine


def test_the_machine_of_a_variant() -> None:
    assert machine_of_variant(AARCH64_VARIANT) is MACHINES["aarch64"]
    assert machine_of_variant(CPU_VARIANT) is machine_of_variant(CUDA_VARIANT) is MACHINES["x86_64"]
    assert machine_of_variant(PLAIN_VARIANT) is None
