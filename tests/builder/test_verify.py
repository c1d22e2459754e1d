"""A published variant is built again from its commit, and every file compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builder.tiny_kernel import CPU_VARIANT, CUDA_VARIANT, PLAIN_PY, PLAIN_VARIANT, TinyKernel, toolkit
from tests.loopback_hub import LoopbackHub


@pytest.fixture
def hub(tmp_path: Path) -> LoopbackHub:
    with LoopbackHub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def published(compiled: TinyKernel, tmp_path: Path) -> Path:
    """A copy of build/ that a test may change."""
    copy = tmp_path / "published"
    shutil.copytree(compiled.root / "build", copy)
    return copy


def test_an_earlier_commit_is_built_again(built: TinyKernel, published: Path) -> None:
    built.replace("kernel_src/scale.h", "kFactor = 2.0f", "kFactor = 3.0f")
    built.commit()
    for where in (published, published / CPU_VARIANT):
        result = built.run("verify", str(where))
        assert result.exit_code == 0, result.output
        assert "sha256 of the rebuilt" in result.output
    assert not (built.root / ".build" / "verify" / CPU_VARIANT).exists()


def change_module(folder: Path) -> None:
    (module,) = folder.glob("*.so")
    data = module.read_bytes()
    module.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def change_python(folder: Path) -> None:
    with (folder / "__init__.py").open("a") as file:
        file.write("import os\n")


def add_file(folder: Path) -> None:
    (folder / "extra.py").write_text("")


@pytest.mark.parametrize(
    ("damage", "where"),
    [
        (change_module, ".abi3.so: "),
        (change_python, "__init__.py: line 10"),
        (add_file, "only the first has it"),
    ],
)
def test_another_file_is_found(
    compiled: TinyKernel, published: Path, damage: Callable[[Path], None], where: str
) -> None:
    damage(published / CPU_VARIANT)
    result = compiled.run("verify", str(published))
    assert result.exit_code == 1
    assert where in result.output
    assert "differs" in result.output


def test_from_a_hub(release: TinyKernel, hub: LoopbackHub) -> None:
    release.write("torch-ext/tiny_kernel/plain/__init__.py", PLAIN_PY)
    release.commit()
    release.build("--locked")
    result = release.run("publish", "--endpoint", hub.url, "--token", "hf_test")
    assert result.exit_code == 0, result.output
    address = f"{hub.url}/kernels/tiny/kernel/tree/v1"
    result = release.run("verify", address)
    assert result.exit_code == 0, result.output
    assert CPU_VARIANT in result.output
    assert PLAIN_VARIANT in result.output
    assert CPU_VARIANT not in release.run("verify", address, "--variant", PLAIN_VARIANT).output


@pytest.mark.parametrize("machine", [toolkit()])
def test_a_partial_cuda_variant_is_built_with_its_capabilities(built: TinyKernel, machine: str) -> None:
    if machine == "no toolkit":
        assert built.run("build", "--variant", CUDA_VARIANT).exit_code == 1
        return
    built.build("--variant", CUDA_VARIANT, "--capability", "9.0")
    result = built.run("verify", str(built.variant(CUDA_VARIANT)))
    assert result.exit_code == 0, result.output
    assert "--capability 9.0" in result.output


def test_a_locked_variant_is_built_with_its_lock(locked_build: TinyKernel) -> None:
    result = locked_build.run("verify", str(locked_build.variant()))
    assert result.exit_code == 0, result.output
    assert "--locked" in result.output


def edit(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "metadata.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (edit(provenance=None), "names no commit to build again"),
        (edit(provenance={"kernel": {"commit": "1" * 40, "dirty": True}}), "that no commit holds"),
        (edit(provenance={"kernel": {"commit": "--upload-pack=x"}}), "that no commit holds"),
        (edit(provenance={"kernel": {"commit": "1" * 40}}), f"does not give commit {'1' * 40}"),
    ],
)
def test_nothing_to_build_from(
    compiled: TinyKernel, published: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(published / CPU_VARIANT)
    result = compiled.run("verify", str(published))
    assert result.exit_code == 1
    assert message in result.output


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("no/such/folder", "is neither a folder nor an address"),
        ("https://example.org/owner", "is neither a folder nor an address"),
        ("{hub}/kernels/tiny/kernel/tree/v9", "has no kernel tiny/kernel with revision v9"),
        ("{empty}", "holds no build variant"),
    ],
)
def test_nothing_published_there(
    compiled: TinyKernel, hub: LoopbackHub, tmp_path: Path, where: str, message: str
) -> None:
    result = compiled.run("verify", where.format(hub=hub.url, empty=tmp_path))
    assert result.exit_code == 1
    assert message in result.output


def test_a_variant_that_was_not_published(compiled: TinyKernel, published: Path) -> None:
    result = compiled.run("verify", str(published), "--variant", PLAIN_VARIANT)
    assert result.exit_code == 1
    assert f"has no variant {PLAIN_VARIANT}; it has {CPU_VARIANT}" in result.output
