"""Compiling: layout, increments, ids, loading."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernels import get_local_kernel
from kernels._rust import Metadata

from builder.config import open_repository
from builder.source_state import source_state
from tests.builder.tiny_kernel import CPU_VARIANT, TinyKernel

REPOSITORY = Path(__file__).resolve().parents[2]


def test_layout_is_the_one_loaders_expect(compiled: TinyKernel) -> None:
    build_id = f"_tiny_kernel_cpu_{compiled.git('rev-parse', 'HEAD')[:7]}"
    folder = compiled.variant()
    files = {
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if "__pycache__" not in p.parts and p.is_file()
    }
    assert files == {
        "__init__.py",
        "_ops.py",
        f"{build_id}.abi3.so",
        "metadata.json",
        "tiny_kernel/__init__.py",
    }


def test_metadata_says_what_it_was_built_from(compiled: TinyKernel) -> None:
    metadata = Metadata.read_from_file(compiled.variant() / "metadata.json")
    assert (str(metadata.name), metadata.version, metadata.license) == ("tiny-kernel", 1, "Apache-2.0")
    assert metadata.provenance.kernel.commit == compiled.git("rev-parse", "HEAD")
    assert not metadata.provenance.dirty
    assert metadata.backend.archs is None
    toolchain = json.loads((compiled.variant() / "metadata.json").read_text())["toolchain"]
    assert toolchain["torch-headers"] == torch.__version__.partition("+")[0]
    assert {"cxx", "ninja"} <= toolchain.keys()


def test_kernel_computes_when_loaded(compiled: TinyKernel) -> None:
    kernel = get_local_kernel(compiled.root / "build")
    assert kernel.scale(torch.arange(100.0)).tolist() == [2.0 * i for i in range(100)]


def test_kernel_imports_by_name_from_the_variant_folder(compiled: TinyKernel) -> None:
    code = "import tiny_kernel as t, torch; assert t.scale(torch.ones(1)).item() == 2; print(t.__all__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=compiled.variant(), capture_output=True, text=True
    )
    assert done.stdout.strip() == "['scale']", done.stderr


def test_two_versions_live_in_one_process(built: TinyKernel) -> None:
    kept = built.root.parent / "kept"
    shutil.copytree(built.root / "build", kept)
    built.replace("kernel_src/scale.h", "kFactor = 2.0f", "kFactor = 5.0f")
    built.commit()
    built.build()
    first, second = get_local_kernel(kept), get_local_kernel(built.root / "build")
    x = torch.ones(64)
    assert (first.scale(x)[0].item(), second.scale(x)[0].item()) == (2.0, 5.0)
    assert first.scale(x)[63].item() == 2.0


def test_second_build_does_nothing(built: TinyKernel) -> None:
    outputs = [
        p for name in ("build", ".build") for p in (built.root / name).rglob("*") if p.suffix in (".o", ".so")
    ]
    before = {p: p.stat().st_mtime_ns for p in [*outputs, built.variant() / "metadata.json"]}
    result = built.build()
    assert "up to date" in result.output
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_only_what_depends_on_a_change_is_compiled(built: TinyKernel) -> None:
    built.append("kernel_src/scale.cpp", "// a note\n")
    output = built.build().output
    assert "compile kernel_src/scale.cpp" in output
    assert "compile kernel_src/isa_avx512.cpp" not in output

    built.append("kernel_src/scale.h", "// a note\n")
    assert "compile kernel_src/isa_avx512.cpp" in built.build().output


def test_flags_are_part_of_what_is_compared(built: TinyKernel) -> None:
    built.replace("build.toml", '"-O3", "-mavx512f"', '"-O2", "-mavx512f"')
    output = built.build().output
    assert "compile kernel_src/isa_avx512.cpp" in output
    assert "compile kernel_src/scale.cpp" not in output


def test_clean_compiles_everything_again(built: TinyKernel) -> None:
    output = built.build("--clean").output
    assert "compile kernel_src/scale.cpp" in output
    assert "compile torch-ext/torch_binding.cpp" in output


def test_a_removed_python_file_leaves_the_variant(built: TinyKernel) -> None:
    built.write("torch-ext/tiny_kernel/extra.py", "X = 1\n")
    built.build()
    assert (built.variant() / "extra.py").is_file()
    (built.root / "torch-ext/tiny_kernel/extra.py").unlink()
    built.build()
    assert not (built.variant() / "extra.py").exists()


def test_id_of_a_dirty_tree_is_its_content(built: TinyKernel) -> None:
    def unique_id() -> str:
        return source_state(open_repository(built.root)).unique_id

    clean = unique_id()
    assert clean == built.git("rev-parse", "HEAD")[:7]
    built.append("kernel_src/scale.cpp", "// one\n")
    one = unique_id()
    assert one.endswith("_dirty")
    built.append("kernel_src/scale.cpp", "// two\n")
    assert unique_id() not in (clean, one)
    built.replace("kernel_src/scale.cpp", "// two\n", "")
    assert unique_id() == one
    built.write("kernel_src/new.h", "#pragma once\n")
    assert unique_id() != one
    (built.root / "kernel_src/new.h").unlink()
    built.git("checkout", "--quiet", "kernel_src")
    assert unique_id() == clean


def test_a_dirty_tree_shows_in_the_metadata(built: TinyKernel) -> None:
    built.append("kernel_src/scale.cpp", "// not committed\n")
    built.build()
    metadata = Metadata.read_from_file(built.variant() / "metadata.json")
    assert metadata.provenance.dirty
    assert metadata.id.endswith("_dirty")
    assert built.module().name == f"{metadata.id}.abi3.so"


def test_a_note_outside_the_inputs_is_not_dirt(built: TinyKernel) -> None:
    clean = built.module().name
    built.write("notes.md", "remember\n")
    built.build()
    assert built.module().name == clean


def test_sources_without_git_still_build(built: TinyKernel) -> None:
    shutil.rmtree(built.root / ".git")
    built.build()
    assert built.module().name.endswith("_dirty.abi3.so")
    assert Metadata.read_from_file(built.variant() / "metadata.json").provenance.kernel is None


def test_same_sources_in_another_folder_give_the_same_bytes(compiled: TinyKernel, tmp_path: Path) -> None:
    elsewhere = tmp_path / "a folder with spaces"
    shutil.copytree(compiled.root, elsewhere, ignore=shutil.ignore_patterns("build", ".build"))
    other = TinyKernel(elsewhere)
    other.build()
    for name in (compiled.module().name, "metadata.json", "_ops.py"):
        assert (other.variant() / name).read_bytes() == (compiled.variant() / name).read_bytes(), name


def test_compiler_errors_are_shown(built: TinyKernel) -> None:
    built.append("kernel_src/scale.cpp", "int x = undeclared_thing;\n")
    result = built.run("build")
    assert result.exit_code == 1
    assert "undeclared_thing" in result.output
    assert "did not compile" in result.output
    assert built.module().is_file(), "the last good build must stay"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"kernel_src/scale.cpp", ',
            '"kernel_src/scale.cpp", "kernel_src/none.cpp", ',
            "none.cpp, which does not exist",
        ),
        ('"kernel_src/scale.cpp", ', '"kernel_src/scale.cpp", "kernel_src/isa_avx512.cpp", ', "listed twice"),
        ('"kernel_src/scale.cpp", ', '"kernel_src/scale.cpp", "CARD.md", ', "sources end in .cpp or .cu"),
        ("edition = 5", "edition = 4", "not a valid build.toml"),
        ('stable-abi = "2.11"', "", "stable-abi"),
        ('stable-abi = "2.11"', 'stable-abi = "9.9"', "Install Torch 9.9 or newer"),
        ("[torch]", "[torch-noarch]", "not a valid build.toml"),
    ],
)
def test_wrong_build_toml_is_explained(built: TinyKernel, old: str, new: str, message: str) -> None:
    built.replace("build.toml", old, new)
    result = built.run("build")
    assert result.exit_code == 1
    assert message in result.output


def test_no_build_toml(tmp_path: Path) -> None:
    result = TinyKernel(tmp_path).run("build")
    assert result.exit_code == 1
    assert "build.toml does not exist" in result.output


def test_unknown_variant_names_the_known(tiny: TinyKernel) -> None:
    result = tiny.run("build", "--variant", "torch-stable-abi211-cu999-x86_64-linux")
    assert result.exit_code == 1
    assert f"Known: {CPU_VARIANT}" in result.output


@pytest.mark.parametrize("command", ["", "list", "build", "lock", "check", "reproduce", "verify", "publish"])
def test_every_command_has_help(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "builder", *command.split(), "--help"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) > 5
