"""What nvcc would name after the folder it compiles in is found, and then the folder does not matter."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from builder.check import check_sources
from builder.config import open_repository
from builder.unit_names import module_findings, source_findings
from tests.builder.tiny_kernel import CUDA_VARIANT, TinyKernel, toolkit


@pytest.mark.parametrize(
    "line",
    [
        "namespace {",
        "static __global__ void fill(int* out) { out[0] = 1; }",
        "__device__ __noinline__ static int twice(int x) { return 2 * x; }",
        "static __constant__ int table[4];",
    ],
)
def test_what_a_cuda_source_keeps_to_itself(tmp_path: Path, line: str) -> None:
    path = tmp_path / "wkv9" / "forward.cu"
    path.parent.mkdir()
    path.write_text(f"// one\n{line}\n")
    (finding,) = source_findings(path)
    assert finding.startswith(f"line 2: `{line}`")
    assert "`inline namespace wkv9_forward_unit`" in finding


@pytest.mark.parametrize(
    "line",
    [
        "inline namespace wkv9_forward_unit {",
        "}  // namespace {",
        "// static here",
        "constexpr int kTurn = 8;  // a static choice",
        'static_assert(kTurn == 8, "static");',
        "  __device__ static int of_a_class();",
        "  static int counter = 0;",
    ],
)
def test_what_has_the_same_name_everywhere(tmp_path: Path, line: str) -> None:
    path = tmp_path / "forward.cu"
    path.write_text(f"{line}\n")
    assert list(source_findings(path)) == []


def test_sources_and_headers_of_the_kernel_are_looked_at(tiny: TinyKernel) -> None:
    tiny.append("kernel_src/device.cu", "static int own = 0;\n")
    tiny.append("kernel_src/scale.h", "namespace {\n}\n")
    found = {f.where for f in check_sources(open_repository(tiny.root)) if "nvcc hashes" in f.what}
    assert found == {"kernel_src/device.cu", "kernel_src/scale.h"}


def test_names_in_a_module(tmp_path: Path) -> None:
    module = tmp_path / "module.so"
    module.write_bytes(b"\0_GLOBAL__N_1\0_ZN1t36_GLOBAL__N__f15428fd_4_x_cu_6c8a51dd4fillEPi\0")
    (finding,) = module_findings(module)
    assert "(1, such as" in finding
    assert "_GLOBAL__N__f15428fd_4_x_cu_6c8a51dd4fillEPi" in finding
    module.write_bytes(b"\0_GLOBAL__N_1\0_GLOBAL__N__fill\0")
    assert list(module_findings(module)) == []


@pytest.mark.parametrize("machine", [toolkit()])
def test_cuda_module_with_hashed_names(tiny: TinyKernel, machine: str) -> None:
    if machine == "no toolkit":
        assert tiny.run("build", "--variant", CUDA_VARIANT).exit_code == 1
        return
    tiny.replace(
        "kernel_src/device.cu",
        "__global__ void fill",
        "namespace { __device__ int own; }\n__global__ void fill",
    )
    tiny.replace("kernel_src/device.cu", "= 1;", "= ++own;")
    tiny.build("--variant", CUDA_VARIANT, "--capability", "9.0")
    assert "own" in next(module_findings(tiny.module(CUDA_VARIANT)))


@pytest.mark.parametrize("machine", [toolkit()])
def test_folder_time_and_user_do_not_show_in_a_cuda_variant(
    tiny: TinyKernel, tmp_path: Path, machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For two capabilities and PTX, compressed as the real one is."""
    if machine == "no toolkit":
        assert tiny.run("build", "--variant", CUDA_VARIANT).exit_code == 1
        return
    tiny.replace("build.toml", 'cuda-flags = ["-O1"]', 'cuda-flags = ["-O1", "--compress-mode=size"]')
    tiny.commit()
    other = TinyKernel(tmp_path / "a folder" / "deeper" / "tiny")
    shutil.copytree(tiny.root, other.root)
    tiny.build("--variant", CUDA_VARIANT, "--jobs", "1")
    for name, value in {
        "TZ": "Asia/Tokyo",
        "LANG": "de_DE.UTF-8",
        "USER": "x",
        "TMPDIR": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    other.build("--variant", CUDA_VARIANT, "--jobs", "2")
    assert other.module(CUDA_VARIANT).read_bytes() == tiny.module(CUDA_VARIANT).read_bytes()
