"""This repository's own build.toml, flake and built variant."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import tomllib
from click.testing import CliRunner
from kernels import get_local_kernel
from kernels._rust import Build

from builder.check import check_sources, check_variants
from builder.cli import main
from builder.config import Repository, open_repository
from builder.differences import compare_variants
from builder.elf import read_shared_object
from builder.variants import known_variants
from tests.builder.tiny_kernel import CUDA_VARIANT, toolkit
from tests.helpers.mirror import mirror as mirror_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def repository() -> Repository:
    return open_repository(ROOT)


@pytest.fixture(scope="module")
def variant(repository: Repository) -> Path:
    """The cpu variant in build/, made first when it is not there."""
    folder = ROOT / "build" / known_variants(repository)[0].name
    if not folder.is_dir():
        result = CliRunner().invoke(main, ["--root", str(ROOT), "build"])
        assert result.exit_code == 0, result.output
    return folder


def test_upstreams_parser_accepts_build_toml() -> None:
    assert [str(backend) for backend in Build.open(ROOT).general.backends] == ["cpu", "cuda"]


def test_build_toml_says_what_the_contract_says(repository: Repository) -> None:
    assert repository.name == "flash-rwkv"
    assert repository.hub_repo == "flash-rwkv/flash-rwkv"
    assert repository.stable_abi == {"cpu": "2.11", "cuda": "2.11"}
    assert [variant.name for variant in known_variants(repository)] == [
        "torch-stable-abi211-cpu-x86_64-linux",
        "torch-stable-abi211-cu130-x86_64-linux",
        "torch-stable-abi211-cu126-x86_64-linux",
        "torch-stable-abi211-cpu-aarch64-linux",
        "torch-stable-abi211-cu130-aarch64-linux",
        "torch-universal",
    ]
    capabilities = {c for section in repository.sections for c in section.cuda_capabilities}
    assert capabilities == {"7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0+PTX"}


def test_every_source_is_listed(repository: Repository) -> None:
    """A unit that nobody lists compiles nowhere, and its symbols are missing only at load."""
    listed = {source for section in repository.sections for source in section.sources}
    there = {
        path.relative_to(ROOT).as_posix()
        for folder in ("kernel_src", "torch-ext")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".cpp", ".cu")
    }
    assert there <= listed
    assert all((ROOT / source).is_file() for source in listed)


def test_flags_promise_no_processor_in_particular(repository: Repository) -> None:
    table = tomllib.loads((ROOT / "build.toml").read_text())
    flags = {flag for kernel in table["kernel"].values() for flag in kernel.get("cxx-flags", ())}
    assert not {flag for flag in flags if flag.startswith(("-march", "-mtune", "-Ofast", "-ffast-math"))}
    for section in repository.sections:
        if any(flag.startswith("-m") for flag in section.cxx_flags):
            assert all("/isa_" in source or source.endswith(".h") for source in section.sources), section.name


def test_flake_is_pinned_by_commit() -> None:
    text = (ROOT / "flake.nix").read_text()
    assert re.search(r'kernel-builder\.url = "github:huggingface/kernels/[0-9a-f]{40}";', text)


@pytest.mark.parametrize(
    "tool", ["nix-instantiate" if shutil.which("nix-instantiate") else "balanced braces"]
)
def test_flake_parses(tool: str) -> None:
    path = ROOT / "flake.nix"
    if tool == "nix-instantiate":
        done = subprocess.run([tool, "--parse", str(path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    text = re.sub(r"#.*", "", path.read_text())
    assert text.count("{") == text.count("}") > 0


def test_sources_are_within_the_rules(repository: Repository) -> None:
    assert list(check_sources(repository)) == []


def test_built_variants_have_no_finding(repository: Repository, variant: Path) -> None:
    names, findings = check_variants(repository, ROOT / "build")
    assert variant.name in names
    assert findings == []


def test_cpu_variant_needs_only_torch_and_the_system(variant: Path) -> None:
    (module,) = variant.glob("*.so")
    shared = read_shared_object(module)
    assert {name for name in shared.needed if "torch" in name or "c10" in name} == {"libtorch_cpu.so"}
    assert shared.run_paths == []
    assert shared.exported == [f"PyInit_{json.loads((variant / 'metadata.json').read_text())['id']}"]


def test_every_instruction_set_is_in_the_module(variant: Path) -> None:
    (module,) = variant.glob("*.so")
    symbols = subprocess.run(
        ["nm", "--demangle", str(module)], capture_output=True, text=True, check=True
    ).stdout
    for name in ("portable", "avx2", "avx512"):
        assert f"flash_rwkv::cpu::{name}::" in symbols, name


def test_variant_loads(variant: Path) -> None:
    kernel = get_local_kernel(ROOT / "build")
    assert {"wkv4", "wkv5", "wkv6", "wkv7"} <= set(kernel.__all__)


@pytest.fixture(scope="module")
def mirror(repository: Repository) -> Path:
    return mirror_of(repository, ROOT / ".build" / "cuda-test")


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("machine", [toolkit()])
def test_cuda_variant_compiles_where_no_gpu_is(mirror: Path, machine: str) -> None:
    """For one capability, and as the rules want it. Running it takes a GPU: `make gpu-test`."""
    arguments = ["build", "--variant", CUDA_VARIANT, "--capability", "9.0"]
    result = CliRunner().invoke(main, ["--root", str(mirror), *arguments])
    if machine == "no toolkit":
        assert result.exit_code == 1
        assert "CUDA 13.0" in result.output
        return
    assert result.exit_code == 0, result.output[-5000:]
    checked = CliRunner().invoke(main, ["--root", str(mirror), "check"])
    assert checked.exit_code == 0, checked.output
    variant = mirror / "build" / CUDA_VARIANT
    (module,) = variant.glob("*.so")
    shared = read_shared_object(module)
    assert {"libtorch_cpu.so", "libtorch_cuda.so", "libcudart.so.13"} <= set(shared.needed)
    assert "aoti_torch_get_current_cuda_stream" in shared.unversioned_imports
    metadata = json.loads((variant / "metadata.json").read_text())
    assert metadata["backend"] == {"type": "cuda", "archs": ["9.0"]}
    symbols = subprocess.run(["nm", "--demangle", str(module)], capture_output=True, text=True).stdout
    for operator in ("wkv4", "wkv6", "wkv7"):
        for kind in ("forward", "backward", "step"):
            assert f"flash_rwkv::cuda::{operator}_{kind}(" in symbols


@pytest.fixture(scope="module")
def copy(repository: Repository) -> Path:
    """The sources themselves in another folder of this checkout, beside the objects of earlier runs."""
    root = ROOT / ".build" / "cuda-test of a copy"
    for name in repository.inputs():
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy2)(ROOT / name, root / name)
    return root


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("machine", [toolkit()])
def test_cuda_variant_is_the_same_from_another_folder(mirror: Path, copy: Path, machine: str) -> None:
    """All of it, as the order of linking shows in the whole alone."""
    arguments = ["build", "--variant", CUDA_VARIANT, "--capability", "9.0"]
    for root, jobs in ((copy, ["--jobs", "2"]), (mirror, [])):
        result = CliRunner().invoke(main, ["--root", str(root), *arguments, *jobs])
        if machine == "no toolkit":
            assert "CUDA 13.0" in result.output
            return
        assert result.exit_code == 0, result.output[-5000:]
    pairs = compare_variants(mirror / "build" / CUDA_VARIANT, copy / "build" / CUDA_VARIANT)
    assert [pair for pair in pairs if not pair.same] == []
