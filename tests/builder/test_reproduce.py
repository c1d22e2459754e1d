"""Two builds of a commit are compared, and what makes them differ is found."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from builder.differences import FilePair, compare_variants
from tests.builder.tiny_kernel import CPU_VARIANT, CUDA_VARIANT, PLAIN_PY, PLAIN_VARIANT, TinyKernel, toolkit


def test_the_same_bytes(tiny: TinyKernel) -> None:
    tiny.write("torch-ext/tiny_kernel/plain/__init__.py", PLAIN_PY)
    tiny.commit()
    result = tiny.run("reproduce")
    assert result.exit_code == 0, result.output
    assert CPU_VARIANT in result.output
    assert PLAIN_VARIANT in result.output
    assert "differs" not in result.output
    assert not (tiny.root / "build").exists(), "what is built here is left alone"
    assert list((tiny.root / ".build" / "reproduce").iterdir()) == []


def test_a_kernel_that_says_when_it_was_built(tiny: TinyKernel) -> None:
    tiny.append(
        "kernel_src/scale.cpp", "extern const char kWhen[] = __TIMESTAMP__;\nauto* volatile keep = kWhen;\n"
    )
    commit = tiny.commit()
    result = tiny.run("reproduce")
    assert result.exit_code == 1, result.output
    assert f"_tiny_kernel_cpu_{commit[:7]}.abi3.so: section .rodata" in result.output
    assert "in kWhen" in result.output
    assert "metadata.json: line" in result.output
    kept = {
        path.name for path in (tiny.root / ".build" / "reproduce" / CPU_VARIANT).iterdir() if path.is_dir()
    }
    assert kept == {"first", "a second folder"}


@pytest.mark.parametrize("machine", [toolkit()])
def test_a_cuda_kernel_named_after_its_folder(tiny: TinyKernel, machine: str) -> None:
    tiny.replace("kernel_src/device.cu", "__global__", "static __device__ int own;\n__global__")
    tiny.replace("kernel_src/device.cu", "= 1;", "= ++own;")
    tiny.commit()
    result = tiny.run("reproduce", "--variant", CUDA_VARIANT, "--capability", "9.0")
    assert result.exit_code == 1, result.output
    assert ("section" if machine == "toolkit" else "does not build") in result.output


@pytest.mark.parametrize("state", ["dirty", "no checkout"])
def test_only_a_commit_is_built_again(tiny: TinyKernel, state: str) -> None:
    if state == "dirty":
        tiny.append("kernel_src/scale.cpp", "// not committed\n")
    else:
        shutil.rmtree(tiny.root / ".git")
    result = tiny.run("reproduce")
    assert result.exit_code == 1
    assert "Commit them first" in result.output


def test_a_commit_that_does_not_build(tiny: TinyKernel) -> None:
    tiny.append("kernel_src/scale.cpp", "int x = undeclared_thing;\n")
    commit = tiny.commit()
    result = tiny.run("reproduce")
    assert result.exit_code == 1
    assert f"{CPU_VARIANT} of {commit[:7]} does not build" in result.output


def differing(first: Path, second: Path) -> list[FilePair]:
    return [pair for pair in compare_variants(first, second) if not pair.same]


def test_files_of_one_side(compiled: TinyKernel, tmp_path: Path) -> None:
    copy = tmp_path / CPU_VARIANT
    shutil.copytree(compiled.variant(), copy)
    assert differing(compiled.variant(), copy) == []
    (copy / "_ops.py").unlink()
    (copy / "notes.txt").write_text("left here")
    found = {pair.name: pair.where for pair in differing(compiled.variant(), copy)}
    assert found == {"_ops.py": "only the first has it", "notes.txt": "only the second has it"}


def test_line_of_a_text(compiled: TinyKernel, tmp_path: Path) -> None:
    copy = tmp_path / CPU_VARIANT
    shutil.copytree(compiled.variant(), copy)
    text = (copy / "__init__.py").read_text()
    (copy / "__init__.py").write_text(text.replace("def scale", "def scaled"))
    (pair,) = differing(compiled.variant(), copy)
    assert pair.where.startswith("line 8, ")
    assert "def scaled(x)" in pair.where


def test_function_of_a_module(compiled: TinyKernel, tmp_path: Path) -> None:
    other = TinyKernel(tmp_path / "other")
    shutil.copytree(compiled.root, other.root)
    other.replace("kernel_src/isa_avx512.cpp", "kFactor * x[i]", "kFactor + x[i]")
    other.build()
    shutil.copy(other.module(), other.root / compiled.module().name)
    shutil.rmtree(other.variant())
    shutil.copytree(compiled.variant(), other.variant())
    shutil.copy(other.root / compiled.module().name, other.variant())
    (pair,) = differing(compiled.variant(), other.variant())
    assert pair.where.startswith("section .")
