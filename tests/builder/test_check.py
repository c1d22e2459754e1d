"""Whatever must not ship is found and named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from builder.check import check_variant
from builder.config import open_repository
from tests.builder.tiny_kernel import CPU_VARIANT, TinyKernel

LEAK = """
__attribute__((noinline)) void leaked(float* x) { for (int i = 0; i < 999; ++i) x[i] *= 3; }
namespace tiny_kernel::cpu::avx512 { void (*volatile keep)(float*) = leaked; }
"""
SHARED_INLINE = """
template <typename T> __attribute__((noinline)) void shared(T* x) { for (int i = 0; i < 999; ++i) x[i] *= 3; }
namespace tiny_kernel::cpu::avx512 { void (*volatile keep)(float*) = shared<float>; }
"""
LOAD_TIME = """
static float table[999];
static const bool filled = [] { for (float& x : table) x = x * 2 + 1; return true; }();
namespace tiny_kernel::cpu::avx512 { float* volatile keep = table; }
"""


def tamper_python(kernel: TinyKernel) -> None:
    (kernel.variant() / "__init__.py").write_text("import torch\n")


def tamper_module(kernel: TinyKernel) -> None:
    data = bytearray(kernel.module().read_bytes())
    data[-1] ^= 1
    kernel.module().write_bytes(data)


def remove_ops(kernel: TinyKernel) -> None:
    (kernel.variant() / "_ops.py").unlink()


def remove_shim(kernel: TinyKernel) -> None:
    shutil.rmtree(kernel.variant() / "tiny_kernel")


def add_file(kernel: TinyKernel) -> None:
    (kernel.variant() / "notes.txt").write_text("left here")


def add_module(kernel: TinyKernel) -> None:
    shutil.copy(kernel.module(), kernel.variant() / "_other.abi3.so")


def remove_metadata(kernel: TinyKernel) -> None:
    (kernel.variant() / "metadata.json").unlink()


def edit_metadata(**changes: object) -> Callable[[TinyKernel], None]:
    def damage(kernel: TinyKernel) -> None:
        path = kernel.variant() / "metadata.json"
        content = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

    return damage


DAMAGES = {
    "python changed": (tamper_python, "digest: File hash mismatch for __init__.py"),
    "module changed": (tamper_module, "digest: File hash mismatch for _tiny_kernel_cpu_"),
    "ops missing": (remove_ops, "_ops.py is missing"),
    "shim missing": (remove_shim, "tiny_kernel/__init__.py is missing"),
    "file added": (add_file, "notes.txt"),
    "module added": (add_module, "_other.abi3.so is not the module that metadata.json names"),
    "metadata missing": (remove_metadata, "metadata.json is missing"),
    "no license": (edit_metadata(license=None), "metadata.json is not valid"),
    "no digest": (edit_metadata(digest=None), "has no digests"),
    "no provenance": (edit_metadata(provenance=None), "says nothing of the source"),
    "other id": (
        edit_metadata(id="_other_cpu_1234567"),
        "id _other_cpu_1234567 is not _tiny_kernel_cpu_<commit>",
    ),
    "other name": (edit_metadata(name="other"), "name other is not this kernel's"),
    "cuda without archs": (edit_metadata(backend={"type": "cuda"}), "names no CUDA capabilities"),
    "cuda without its library": (edit_metadata(backend={"type": "cuda"}), "does not name libtorch_cuda.so"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_variant(built: TinyKernel, damage: str) -> None:
    change, message = DAMAGES[damage]
    change(built)
    found = list(check_variant(built.variant(), "tiny_kernel"))
    assert any(message in finding for finding in found), found


def test_a_good_variant_has_no_finding(compiled: TinyKernel) -> None:
    result = compiled.run("check")
    assert result.exit_code == 0, result.output
    assert CPU_VARIANT in result.output


def test_findings_are_printed_and_counted(built: TinyKernel) -> None:
    tamper_python(built)
    result = built.run("check")
    assert result.exit_code == 1
    assert f"{CPU_VARIANT}: digest" in result.output
    assert "__init__.py" in result.output


def test_one_folder_can_be_checked(compiled: TinyKernel, tmp_path: Path) -> None:
    copy = tmp_path / CPU_VARIANT
    shutil.copytree(compiled.variant(), copy)
    assert compiled.run("check", str(copy)).exit_code == 0
    (copy / "_ops.py").unlink()
    assert compiled.run("check", str(copy)).exit_code == 1


def test_nothing_built_is_an_error(tiny: TinyKernel) -> None:
    result = tiny.run("check")
    assert result.exit_code == 1
    assert "holds no build variant" in result.output


@pytest.mark.parametrize(
    ("code", "name"), [(LEAK, "leaked("), (SHARED_INLINE, "shared<float>("), (LOAD_TIME, "GLOBAL__sub_I")]
)
def test_new_instructions_outside_their_namespace(built: TinyKernel, code: str, name: str) -> None:
    built.append("kernel_src/isa_avx512.cpp", code)
    built.build()
    found = [f for f in check_variant(built.variant(), "tiny_kernel") if "instruction set" in f]
    assert len(found) == 1, found
    assert name in found[0]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "#include <memory_resource>\nvoid* keep() { return std::pmr::new_delete_resource(); }",
            "not manylinux_2_28",
        ),
        ("#include <Python.h>\nPyObject* keep() { return PyList_GetItemRef(nullptr, 0); }", "not abi3"),
        (
            "namespace c10 { void abi(); }\nvoid keep() { c10::abi(); }",
            "imports _ZN3c103abiEv, which is neither",
        ),
    ],
)
def test_imports_that_older_systems_lack(built: TinyKernel, code: str, message: str) -> None:
    built.replace(
        "kernel_src/scale.cpp", '#include "scale.h"\n', '#include "scale.h"\n' + with_reference(code)
    )
    built.build()
    found = list(check_variant(built.variant(), "tiny_kernel"))
    assert any(message in finding for finding in found), found


def with_reference(code: str) -> str:
    """Code whose function the linker must keep; Python's newer functions have to be declared by hand."""
    code = code.replace(
        "#include <Python.h>", 'extern "C" { struct PyObject; PyObject* PyList_GetItemRef(PyObject*, long); }'
    )
    return f"{code}\nauto* volatile kept = &keep;\n"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("-Wl,-rpath,/opt/torch/lib", "looks for libraries in /opt/torch/lib"),
        ("-Wl,--no-as-needed -lresolv", "needs libresolv.so.2, which nobody promises"),
    ],
)
def test_linkage(built: TinyKernel, option: str, message: str) -> None:
    relink(built, option)
    assert message in "\n".join(check_variant(built.variant(), "tiny_kernel"))


def test_an_exported_symbol(built: TinyKernel) -> None:
    relink(built, "-Wl,--export-dynamic", "-Wl,--version-script")
    assert "exports _ZN11tiny_kernel3cpu5scaleEPKfPfl; only PyInit_" in "\n".join(
        check_variant(built.variant(), "tiny_kernel")
    )


def relink(kernel: TinyKernel, option: str, without: str = "-Wl,--no-such-option") -> None:
    """Put the objects together with another option."""
    objects = sorted(str(p) for p in (kernel.root / ".build" / CPU_VARIANT / "obj").rglob("*.o"))
    script = next((kernel.root / ".build").rglob("exports.map"))
    flags = ["-shared", "-Wl,--allow-shlib-undefined", f"-Wl,--version-script={script}", *option.split()]
    flags = [flag for flag in flags if not flag.startswith(without)]
    subprocess.run(["g++", *objects, *flags, "-o", str(kernel.module())], check=True)


def test_own_copies_of_the_standard_library_stay_inside(built: TinyKernel) -> None:
    """What libstdc++ exports too would be shared between kernels; ld does not hide it by itself."""
    built.append(
        "kernel_src/scale.cpp",
        "namespace std { [[noreturn]] void __throw_length_error(const char*) { __builtin_trap(); } }\n",
    )
    built.build()
    assert list(check_variant(built.variant(), "tiny_kernel")) == []
    symbols = subprocess.run(["nm", str(built.module())], capture_output=True, text=True, check=True).stdout
    assert " t _ZSt20__throw_length_errorPKc" in symbols


def test_committed_generated_file(built: TinyKernel) -> None:
    built.write("torch-ext/registration.h", "#pragma once\n")
    built.commit()
    result = built.run("check")
    assert result.exit_code == 1
    assert "torch-ext/registration.h: is generated at every build" in result.output


def test_sources_are_checked_too(built: TinyKernel) -> None:
    built.append("torch-ext/tiny_kernel/__init__.py", "import numpy\n")
    result = built.run("check")
    assert result.exit_code == 1
    assert "torch-ext/tiny_kernel/__init__.py: line 10: imports numpy" in result.output


def test_public_api_must_be_named(built: TinyKernel) -> None:
    built.replace("torch-ext/tiny_kernel/__init__.py", '__all__ = ["scale"]\n', "")
    assert "torch-ext/tiny_kernel/__init__.py has no __all__" in built.run("check").output


def test_every_header_is_listed(built: TinyKernel) -> None:
    """One that a listed header includes, found beside it or in a folder of `include`."""
    built.write("kernel_src/deep/detail.h", '#include "../detail.h"\n')
    built.write("kernel_src/detail.h", "#pragma once\n")
    built.append("kernel_src/scale.h", '#include "deep/detail.h"\n')
    output = built.run("check").output
    assert "kernel_src/deep/detail.h is included but not listed" in output
    assert "kernel_src/detail.h is included but not listed" in output
    assert "scale.h is included" not in output
    assert "registration.h" not in output


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (
            'cxx-flags = ["-O2"]\nsrc = ["kernel_src/scale.cpp", "kernel_src/scale.h"]',
            "scale.cpp has other cxx-flags",
        ),
        ('cxx-flags = ["-O1"]\nsrc = ["kernel_src/scale.h"]', "scale.cpp is listed for cpu but not for cuda"),
    ],
)
def test_cuda_variants_carry_the_cpu_kernels(built: TinyKernel, new: str, message: str) -> None:
    text = (built.root / "build.toml").read_text()
    head, section, tail = text.partition("[kernel.cuda_cpu]")
    old = 'cxx-flags = ["-O1"]\nsrc = ["kernel_src/scale.cpp", "kernel_src/scale.h"]'
    built.write("build.toml", head + section + tail.replace(old, new, 1))
    open_repository(built.root)
    assert message in built.run("check").output


def test_without_the_abi_checker(built: TinyKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """An offline machine may lack `kernel-abi-check`: the other checks run, and nothing is published."""
    monkeypatch.setitem(sys.modules, "kernel_abi_check", None)
    result = built.run("check")
    assert result.exit_code == 0, result.output
    assert "The ABI was not checked" in result.output
    (built.root / "CARD.md").write_text("# card\n")
    result = built.run("publish", "--repo", "owner/name", "--dry-run", "--trial")
    assert result.exit_code == 1
    assert "pip install kernel-abi-check" in result.output
