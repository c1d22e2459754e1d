"""The lock names every tool, wheels come by their digest alone, and other tools are refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
from kernels._rust import Metadata
from rich.console import Console

from builder import host, lock
from builder.config import open_repository
from builder.cuda_wheels import LIBRARY_PARTS, PARTS, RUNTIME, Wheel, fetch_toolkit, parts_of, resolve_wheels
from builder.errors import BuilderError
from builder.lock import LOCK, Lock, read_lock, write_lock
from builder.variants import Variant, known_variants
from tests.builder.tiny_kernel import AARCH64_VARIANT, CUDA_VARIANT, PLAIN_PY, PLAIN_VARIANT, TinyKernel

ROOT = Path(__file__).resolve().parents[2]


def edit_lock(kernel: TinyKernel, **host: str | None) -> None:
    """Change what the lock says of the host; None takes a name away."""
    path = kernel.root / LOCK
    content = json.loads(path.read_text())
    merged = {**content["host"], **host}
    content["host"] = {name: value for name, value in merged.items() if value is not None}
    path.write_text(json.dumps(content))


def test_a_lock_names_every_tool_by_version_or_digest(locked: TinyKernel, index: Path) -> None:
    made = read_lock(open_repository(locked.root))
    assert {"ninja", "python", "torch-headers", "torch-headers-sha256"} == made.host.keys()
    assert all(made.host.values())
    assert made.compilers.keys() == {"x86_64", "aarch64", "clang"}
    assert "clang-19" in made.compilers.pop("clang")
    for machine, packages in made.compilers.items():
        assert any(name.startswith("g++-") for name in packages)
        assert f"binutils-{machine.replace('_', '-')}-linux-gnu" in packages
        assert all(packages.values())
    assert not made.compilers["x86_64"].keys() & made.compilers["aarch64"].keys()
    assert [wheel.name for wheel in made.cuda["12.6"]] == sorted(LIBRARY_PARTS)
    wheels = made.cuda["13.0"]
    assert [wheel.name for wheel in wheels if wheel.machine is None] == sorted(PARTS)
    assert [wheel.name for wheel in wheels if wheel.machine == "aarch64"] == [RUNTIME]
    for wheel in wheels:
        assert wheel.sha256 == hashlib.sha256((index / wheel.file).read_bytes()).hexdigest()
    first = (locked.root / LOCK).read_text()
    assert locked.run("lock").exit_code == 0
    assert (locked.root / LOCK).read_text() == first


def test_metadata_names_the_lock(locked: TinyKernel) -> None:
    locked.write("torch-ext/tiny_kernel/plain/__init__.py", PLAIN_PY)
    locked.commit()
    locked.build("--locked")
    digest = hashlib.sha256((locked.root / LOCK).read_bytes()).hexdigest()
    for variant in (locked.variant(), locked.variant(PLAIN_VARIANT)):
        provenance = json.loads((variant / "metadata.json").read_text())["provenance"]
        assert provenance["toolchain-lock"] == {"algorithm": "sha256", "digest": digest}
        assert Metadata.read_from_file(variant / "metadata.json").provenance.kernel is not None
    locked.build()
    assert "toolchain-lock" not in (locked.variant() / "metadata.json").read_text()


def test_objects_of_other_tools_are_not_linked(locked: TinyKernel) -> None:
    locked.build()
    assert "compile kernel_src/scale.cpp" in locked.build("--locked").output
    assert "compile kernel_src/scale.cpp" not in locked.build("--locked").output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"python": "3.1.4"}, "python is 3."),
        ({"torch-headers-sha256": "0" * 64}, f"locked is {'0' * 64}"),
        ({"ninja": None}, "locked is none"),
        ({"libwheel": "4.2-1"}, "libwheel is missing, locked is 4.2-1"),
    ],
)
def test_other_tools_are_refused_by_name(
    locked: TinyKernel, change: dict[str, str | None], message: str
) -> None:
    edit_lock(locked, **change)
    result = locked.run("build", "--locked")
    assert result.exit_code == 1
    assert message in result.output
    assert "Install what is locked" in result.output
    assert not (locked.root / "build").exists()


def test_a_compiler_for_another_architecture_is_refused_where_it_is_used(locked: TinyKernel) -> None:
    path = locked.root / LOCK
    content = json.loads(path.read_text())
    content["compilers"]["aarch64"]["g++-aarch64"] = "1.0"
    path.write_text(json.dumps(content))
    locked.build("--locked")
    result = locked.run("build", "--locked", "--variant", AARCH64_VARIANT)
    assert result.exit_code == 1
    assert "g++-aarch64 is missing, locked is 1.0" in result.output


def test_cuda_is_not_fetched_for_a_host_that_is_refused(locked: TinyKernel) -> None:
    edit_lock(locked, python="3.1.4")
    assert locked.run("build", "--locked", "--variant", CUDA_VARIANT).exit_code == 1
    assert not (locked.root / ".build").exists()


def test_a_release_that_is_not_locked(locked: TinyKernel) -> None:
    path = locked.root / LOCK
    path.write_text(path.read_text().replace('"13.0": [', '"13.1": ['))
    result = locked.run("build", "--locked", "--variant", CUDA_VARIANT)
    assert result.exit_code == 1
    assert "has no wheels of CUDA 13.0" in result.output


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"host": {}, "cuda": {}}',
        '{"host": {}, "compilers": {}, "cuda": {"13.0": [{"name": "x"}]}}',
    ],
)
def test_a_damaged_lock(locked: TinyKernel, text: str) -> None:
    (locked.root / LOCK).write_text(text)
    result = locked.run("build", "--locked")
    assert result.exit_code == 1
    assert "is not a lock of a toolchain" in result.output


def test_no_lock(tiny: TinyKernel) -> None:
    result = tiny.run("build", "--locked")
    assert result.exit_code == 1
    assert "Write it with `python -m builder lock`" in result.output


def test_wheels_become_one_toolkit_once(index: Path, tmp_path: Path) -> None:
    wheels = resolve_wheels("13.0", ("x86_64", "aarch64"))
    toolkit = fetch_toolkit(wheels, tmp_path / "store", Console())
    done = subprocess.run([toolkit / "bin/nvcc", "--version"], capture_output=True, text=True, check=True)
    assert "V13.0.7" in done.stdout
    assert len(list(toolkit.glob("include/*.h"))) == len(PARTS) - 2
    assert (toolkit / "lib/libcudart.so.13").is_file()
    assert (toolkit / "targets/sbsa-linux/lib/libcudart.so.13").is_file()
    for wheel in index.iterdir():
        wheel.unlink()
    assert fetch_toolkit(wheels, tmp_path / "store", Console()) == toolkit, "nothing is asked for again"


def test_wheels_with_a_folder_each_become_one_toolkit(index: Path, tmp_path: Path) -> None:
    toolkit = fetch_toolkit(resolve_wheels("12.6"), tmp_path / "store", Console())
    assert (toolkit / "lib/libcudart.so.12").is_file()
    assert len(list(toolkit.glob("include/*.h"))) == len(LIBRARY_PARTS) - 1


def test_a_wheel_of_another_digest_is_refused(index: Path, tmp_path: Path) -> None:
    first, *rest = resolve_wheels("13.0")
    changed = Wheel(first.name, first.version, first.file, "0" * 64)
    with pytest.raises(BuilderError, match="pip download of CUDA's wheels failed"):
        fetch_toolkit((changed, *rest), tmp_path / "store", Console())
    assert not list((tmp_path / "store").glob("cuda-*/nvidia"))


def test_a_release_that_the_index_does_not_have(index: Path) -> None:
    with pytest.raises(BuilderError, match=r"No matching distribution found for nvidia-cuda-nvcc==14\.1"):
        resolve_wheels("14.1")


def test_a_compiler_that_no_package_brought(
    tiny: TinyKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text('#!/bin/sh\nexec g++ "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    result = tiny.run("lock")
    assert result.exit_code == 1
    assert "came with no package" in result.output


def test_a_system_without_dpkg(tiny: TinyKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    which = host.shutil.which
    monkeypatch.setattr(
        host.shutil, "which", lambda name, **kw: None if "dpkg" in name else which(name, **kw)
    )
    result = tiny.run("lock")
    assert result.exit_code == 1
    assert "no dpkg here" in result.output


def test_a_lock_is_written_as_it_is_read(tiny: TinyKernel) -> None:
    repository = open_repository(tiny.root)
    wheels = (Wheel("a", "1", "a.whl", "00"), Wheel("a", "1", "a_arm.whl", "01", "aarch64"))
    written = Lock({"python": "3.11"}, {"x86_64": {"g++-12": "12.2"}}, {"13.0": wheels})
    path = write_lock(repository, written)
    assert read_lock(repository) == written
    assert hashlib.sha256(path.read_bytes()).hexdigest() == written.sha256


def test_the_committed_lock_has_all_that_this_kernel_is_built_for() -> None:
    repository = open_repository(ROOT)
    committed = read_lock(repository)
    assert committed.text() == (ROOT / lock.LOCK).read_text(), "written by `python -m builder lock`"
    compiled = [variant for variant in known_variants(repository) if isinstance(variant, Variant)]
    assert committed.cuda.keys() == {v.platform.cuda for v in compiled if v.platform.cuda}
    assert committed.compilers.keys() == {v.platform.machine for v in compiled} | {lock.CLANG}
    for release, wheels in committed.cuda.items():
        assert sorted(wheel.name for wheel in wheels if wheel.machine is None) == sorted(parts_of(release))
    assert [wheel.name for wheel in committed.cuda["13.0"] if wheel.machine == "aarch64"] == [RUNTIME]
