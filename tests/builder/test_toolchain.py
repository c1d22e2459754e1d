"""A machine that lacks something is told what, and where to get it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from builder import toolchain
from builder.errors import BuilderError
from builder.variants import Platform, Variant
from tests.builder.tiny_kernel import CPU_VARIANT, CUDA_VARIANT, TinyKernel

CPU = Variant(Platform("cpu", "x86_64"), "2.11")
CUDA = Variant(Platform("cuda", "x86_64", cuda="13.0"), "2.11")


def script(path: Path, text: str) -> Path:
    """An executable that prints a text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
    path.chmod(0o755)
    return path


def explain(variant: Variant) -> str:
    with pytest.raises(BuilderError) as error:
        toolchain.find_toolchain(variant)
    return str(error.value)


def test_missing_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-g++")
    message = explain(CPU)
    assert "no-such-g++ is not on PATH" in message
    assert "apt-get install g++" in message


def test_compiler_that_is_not_gcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", str(script(tmp_path / "clang++", "clang version 19.1.7")))
    assert "is not GCC (clang version 19.1.7)" in explain(CPU)


def test_compiler_that_is_too_old(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = -dumpfullversion ] && echo 9.4.0 && exit\n'
        'echo "g++ 9.4.0"; echo "Copyright (C) Free Software Foundation"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert "is GCC 9.4.0; C++20 needs 11 or newer" in explain(CPU)


def test_torch_that_is_too_old() -> None:
    message = explain(Variant(Platform("cpu", "x86_64"), "99.0"))
    assert "the stable ABI of this kernel is that of 99.0" in message


def test_torch_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = toolchain.importlib.util.find_spec
    monkeypatch.setattr(
        toolchain.importlib.util, "find_spec", lambda name: None if name == "torch" else found(name)
    )
    assert "Torch is not installed" in explain(CPU)


def test_missing_python_headers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(toolchain.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert "python3-dev" in explain(CPU)


def test_another_machine() -> None:
    assert "compiles for: x86_64, aarch64" in explain(Variant(Platform("cpu", "riscv64"), "2.11"))


def test_missing_cross_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    message = explain(Variant(Platform("cpu", "aarch64"), "2.11"))
    assert "No C++ compiler for aarch64: aarch64-linux-gnu-g++ is not on PATH" in message
    assert "apt-get install g++-aarch64-linux-gnu" in message


def test_another_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain.platform, "system", lambda: "Darwin")
    assert "is built under Linux; this is Darwin" in explain(CPU)


def test_cuda_toolkit_without_the_runtime_of_another_architecture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = tmp_path / "cuda"
    script(root / "bin/nvcc", f"#$ TOP={root}\nCuda compilation tools, release 13.0, V13.0.88")
    script(root / "lib64/libcudart.so.13", "of this machine")
    without_cuda(monkeypatch, tmp_path)
    monkeypatch.setattr(toolchain, "_find_gcc", lambda machine: ("g++", "g++"))
    message = explain(Variant(Platform("cuda", "aarch64", cuda="13.0"), "2.11"))
    assert f"{root} has no libcudart.so.13 of aarch64" in message
    assert "build with --locked" in message
    script(root / "targets/sbsa-linux/lib/libcudart.so.13", "of aarch64")
    found = toolchain.find_toolchain(Variant(Platform("cuda", "aarch64", cuda="13.0"), "2.11"), root)
    assert found.cuda.cudart == root / "targets/sbsa-linux/lib/libcudart.so.13"


def without_cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide every CUDA toolkit of this machine; compilers stay where they are."""
    monkeypatch.delenv("CUDACXX", raising=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    which = toolchain.shutil.which
    hidden = (str(tmp_path / "cuda"),)
    monkeypatch.setattr(
        toolchain.shutil,
        "which",
        lambda name, **kw: None if "nvcc" in name and not name.startswith(hidden) else which(name, **kw),
    )


def test_missing_nvcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_cuda(monkeypatch, tmp_path)
    assert "No nvcc: this variant needs the CUDA 13.0 toolkit" in explain(CUDA)


@pytest.mark.parametrize("release", ["12.4", "13.1"])
def test_nvcc_of_another_release(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, release: str) -> None:
    without_cuda(monkeypatch, tmp_path)
    script(tmp_path / "cuda/bin/nvcc", f"Cuda compilation tools, release {release}, V{release}.99")
    message = explain(CUDA)
    assert f"is of CUDA {release}" in message
    assert "made with CUDA 13.0" in message


def test_list_says_why_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: TinyKernel) -> None:
    without_cuda(monkeypatch, tmp_path)
    output = " ".join(tiny.run("list").output.split())
    assert f"{CPU_VARIANT} yes" in output
    assert f"{CUDA_VARIANT} no: No nvcc" in output


def test_build_of_a_variant_that_cannot_be_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: TinyKernel
) -> None:
    without_cuda(monkeypatch, tmp_path)
    result = tiny.run("build", "--variant", CUDA_VARIANT)
    assert result.exit_code == 1
    assert "No nvcc" in result.output


def test_versions_are_recorded() -> None:
    versions = toolchain.find_toolchain(CPU).versions()
    assert versions.keys() == {"cxx", "ninja", "torch-headers"}
    assert all(versions.values())


def test_ninja_comes_from_this_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "PATH", os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if "venv" not in p)
    )
    assert Path(toolchain.find_toolchain(CPU).ninja).is_relative_to(sys.prefix)
