"""Variants for an architecture other than this machine's."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from builder import toolchain
from builder.config import open_repository
from builder.elf import read_shared_object
from builder.machines import MACHINES, Machine, machine_of_flags, machine_of_variant
from tests.aarch64.conftest import require_tools
from tests.builder.tiny_kernel import (
    AARCH64_VARIANT,
    CPU_VARIANT,
    CUDA_AARCH64_VARIANT,
    CUDA_VARIANT,
    PLAIN_VARIANT,
    TinyKernel,
    toolkit,
)

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


@pytest.mark.parametrize("machine", [toolkit()])
def test_cuda(tiny: TinyKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str) -> None:
    """nvcc with the cross compiler; the runtime is a stub, for `--locked` would fetch 100 MB."""
    require_tools()
    if machine == "no toolkit":
        assert "CUDA 13.0" in tiny.run("build", "--variant", CUDA_AARCH64_VARIANT).output
        return
    found = toolchain._cuda_toolkit

    def with_stub(nvcc: str, version: str, wanted: str, machine: Machine) -> toolchain.Cuda:
        cuda = found(nvcc, version, wanted, MACHINES["x86_64"])
        return replace(cuda, cudart=stub_of(cuda.cudart, tmp_path, machine))

    monkeypatch.setattr(toolchain, "_cuda_toolkit", with_stub)
    tiny.build("--variant", CUDA_AARCH64_VARIANT, "--capability", "9.0")
    shared = read_shared_object(tiny.module(CUDA_AARCH64_VARIANT))
    assert shared.machine == "AArch64"
    assert {"libtorch_cuda.so", "libcudart.so.13"} <= set(shared.needed)
    metadata = json.loads((tiny.variant(CUDA_AARCH64_VARIANT) / "metadata.json").read_text())
    assert metadata["backend"] == {"type": "cuda", "archs": ["9.0"]}
    assert tiny.run("check").exit_code == 0, tiny.run("check").output


def stub_of(library: Path, folder: Path, machine: Machine) -> Path:
    """A library of another architecture with the functions of one of this machine, and their version."""
    listed = subprocess.run(
        ["nm", "--dynamic", "--defined-only", "--format=just-symbols", str(library)],
        capture_output=True,
        text=True,
        check=True,
    )
    names = {name.partition("@")[0] for name in listed.stdout.split() if name.startswith(("cuda", "__cuda"))}
    source, versions, stub = folder / "cudart.c", folder / "cudart.map", folder / library.name
    source.write_text("".join(f"void {name}(void) {{}}\n" for name in sorted(names)))
    versions.write_text(f"{library.name} {{ *; }};\n")
    flags = ["-shared", "-nostdlib", f"-Wl,-soname,{library.name},--version-script={versions}"]
    subprocess.run([machine.tool("gcc"), *flags, str(source), "-o", str(stub)], check=True)
    return stub


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
