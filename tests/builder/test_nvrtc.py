"""CUDA without nvcc: machine code by NVRTC, the host's code by clang, and both have the same kernels."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from builder import toolchain
from builder.capabilities import up_to
from builder.cli import main
from builder.config import open_repository
from builder.cuda_wheels import fetch_toolkit
from builder.differences import compare_variants
from builder.elf import read_shared_object
from builder.lock import TOOLKITS, Lock, read_lock, write_lock
from builder.nvrtc import edges, kernels
from builder.variants import find_variant
from tests.builder.conftest import require_clang
from tests.builder.tiny_kernel import CUDA126_VARIANT, TinyKernel
from tests.helpers.mirror import mirror

ROOT = Path(__file__).resolve().parents[2]
KERNELS_PY = Path(kernels.__file__)

DEVICE_CU = """\
#include <cuda_runtime_api.h>

#include <cmath>

#include "value.h"
namespace tiny_kernel {
template <class T>
__global__ void fill(T* out, int64_t n) {
  if (threadIdx.x < n) out[threadIdx.x] = kValue;
}
template <class T>
cudaError_t launch(void* out, int64_t n, cudaStream_t stream) {
#if defined(__CUDACC_RTC__)
  return fill<T> == nullptr ? cudaErrorInvalidDeviceFunction : cudaSuccess;
#else
  fill<<<1, 32, 0, stream>>>(static_cast<T*>(out), n);
  return cudaGetLastError();
#endif
}
cudaError_t launch(void* out, int64_t n, bool wide, cudaStream_t stream) {
  return wide ? launch<double>(out, n, stream) : launch<float>(out, n, stream);
}
}  // namespace tiny_kernel
"""
HOST_CPP = """\
#include <cstdint>
#include <cuda_runtime_api.h>
extern "C" int aoti_torch_get_current_cuda_stream(int device, void** stream);
namespace tiny_kernel {
cudaError_t launch(void* out, int64_t n, bool wide, cudaStream_t stream);
void fill(void* out) {
  void* stream = nullptr;
  aoti_torch_get_current_cuda_stream(0, &stream);
  launch(out, 32, true, static_cast<cudaStream_t>(stream));
}
void (*volatile keep)(void*) = fill;
}  // namespace tiny_kernel
"""
VALUE_H = "#include <cstdint>\ninline constexpr int64_t kValue = 1;\n"


@pytest.fixture(scope="module")
def toolkits() -> Path:
    """The folder of toolkits of this checkout, with the one of CUDA 12.6 in it."""
    require_clang()
    wheels = read_lock(open_repository(ROOT)).cuda["12.6"]
    fetch_toolkit(wheels, ROOT / TOOLKITS, Console())
    return ROOT / TOOLKITS


def use(toolkits: Path, root: Path) -> None:
    """Have a repository take those, not fetch its own."""
    (root / TOOLKITS).parent.mkdir(exist_ok=True)
    if not (root / TOOLKITS).exists():
        (root / TOOLKITS).symlink_to(toolkits)


@pytest.fixture
def kernel(tiny: TinyKernel, toolkits: Path) -> TinyKernel:
    """A repository with a CUDA source that NVRTC takes, and a lock that has the wheels."""
    tiny.write("kernel_src/device.cu", DEVICE_CU.replace("#include <cmath>\n\n", ""))
    tiny.write("kernel_src/value.h", VALUE_H)
    tiny.write("kernel_src/device_host.cpp", HOST_CPP)
    listed = '"kernel_src/device.cu", "kernel_src/value.h", "kernel_src/device_host.cpp"'
    tiny.replace("build.toml", '"kernel_src/device.cu"', listed)
    tiny.lock()
    repository = open_repository(tiny.root)
    wheels = {"12.6": read_lock(open_repository(ROOT)).cuda["12.6"]}
    write_lock(repository, replace(read_lock(repository), cuda=wheels))
    use(toolkits, tiny.root)
    tiny.commit()
    return tiny


def objects(kernel: TinyKernel) -> Path:
    return kernel.root / ".build" / CUDA126_VARIANT / "obj" / "kernel_src"


def test_it_is_built_and_checked(kernel: TinyKernel) -> None:
    kernel.build("--variant", CUDA126_VARIANT)
    shared = read_shared_object(kernel.module(CUDA126_VARIANT))
    assert {"libtorch_cuda.so", "libcudart.so.12"} <= set(shared.needed)
    metadata = json.loads((kernel.variant(CUDA126_VARIANT) / "metadata.json").read_text())
    assert metadata["backend"] == {"type": "cuda", "archs": ["8.0", "9.0+PTX"]}
    assert metadata["toolchain"]["nvrtc"].startswith("12.6.")
    assert "clang version" in metadata["toolchain"]["clang"]
    assert kernel.run("check").exit_code == 0, kernel.run("check").output
    for arch in ("sm_80", "sm_90"):
        names = kernels.kernels_of_cubin(objects(kernel) / f"device.cu.o.{arch}")
        assert names == {"_ZN11tiny_kernel4fillIfEEvPT_l", "_ZN11tiny_kernel4fillIdEEvPT_l"}
    ptx = (objects(kernel) / "device.cu.o.compute_90").read_text()
    assert ".entry _ZN11tiny_kernel4fillIfEEvPT_l(" in ptx


def test_only_what_changed_is_compiled(kernel: TinyKernel) -> None:
    kernel.build("--variant", CUDA126_VARIANT, "--capability", "9.0")
    assert "(up to date)" in kernel.build("--variant", CUDA126_VARIANT, "--capability", "9.0").output
    kernel.write("kernel_src/value.h", VALUE_H.replace("= 1", "= 2"))
    output = kernel.build("--variant", CUDA126_VARIANT, "--capability", "9.0").output
    assert "compile kernel_src/device.cu for a device" in output
    assert "compile kernel_src/device.cu for the host" in output
    assert "compile kernel_src/scale.cpp" not in output


def test_the_same_bytes_in_another_folder(kernel: TinyKernel, tmp_path: Path) -> None:
    copy = TinyKernel(tmp_path / "a second folder" / "tiny")
    shutil.copytree(kernel.root, copy.root, symlinks=True)
    for each in (kernel, copy):
        each.build("--variant", CUDA126_VARIANT)
    pairs = compare_variants(kernel.variant(CUDA126_VARIANT), copy.variant(CUDA126_VARIANT))
    assert [pair for pair in pairs if not pair.same] == []


def test_an_error_is_shown_with_its_line(kernel: TinyKernel) -> None:
    kernel.replace("kernel_src/device.cu", "= kValue", "= kValu")
    result = kernel.run("build", "--variant", CUDA126_VARIANT, "--capability", "9.0")
    assert result.exit_code == 1
    assert 'kernel_src/device.cu(7): error: identifier "kValu" is undefined' in result.output


def test_a_host_header_that_there_is_no_stand_in_for(kernel: TinyKernel) -> None:
    kernel.write("kernel_src/device.cu", DEVICE_CU)
    result = kernel.run("build", "--variant", CUDA126_VARIANT, "--capability", "9.0")
    assert result.exit_code == 1
    assert 'cannot open source file "cmath"' in result.output


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("fill<T> == nullptr", "fill<float> == nullptr"), "has 1 kernels, and"),  # one is not named
        (("int64_t n) {\n  if", "long long n) {\n  if"), "does not name"),  # the type on one side alone
    ],
)
def test_kernels_that_one_side_lacks(kernel: TinyKernel, change: tuple[str, str], complaint: str) -> None:
    kernel.build("--variant", CUDA126_VARIANT, "--capability", "9.0")
    made = objects(kernel) / "device.cu.o"
    kernel.replace("kernel_src/device.cu", *change)
    other = kernel.root / "other.sm_90"
    (nvrtc,) = (kernel.root / TOOLKITS).glob("cuda-*/nvidia/cuda/lib/libnvrtc.so.12")
    command = [sys.executable, str(KERNELS_PY.with_name("device.py")), "--library", str(nvrtc)]
    command += ["--arch", "sm_90", "--out", str(other), "kernel_src/device.cu", "--", "-Ikernel_src"]
    include = nvrtc.parents[1] / "include"
    subprocess.run([*command, f"-I{include}"], cwd=kernel.root, check=True)
    done = subprocess.run(
        [sys.executable, str(KERNELS_PY), str(made), str(other)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert complaint in done.stderr
    assert not made.exists(), "what does not fit is not linked"


def test_a_flag_that_only_nvcc_knows(kernel: TinyKernel) -> None:
    kernel.replace("build.toml", 'cuda-flags = ["-O1"]', 'cuda-flags = ["--expt-relaxed-constexpr"]')
    result = kernel.run("build", "--variant", CUDA126_VARIANT)
    assert result.exit_code == 1
    assert "the cuda-flag --expt-relaxed-constexpr is nvcc's" in result.output


def test_flags_of_this_kernel() -> None:
    flags = ["-std=c++20", "-O3", "--compress-mode=size", "-Xcompiler=-fvisibility=hidden", "-DX=1"]
    assert edges._nvrtc_flags(flags) == ["-std=c++20", "-DX=1"]


def test_without_clang(monkeypatch: pytest.MonkeyPatch, tiny: TinyKernel) -> None:
    which = shutil.which
    monkeypatch.setattr(
        toolchain.shutil, "which", lambda name, **kw: None if "clang" in name else which(name, **kw)
    )
    output = " ".join(tiny.run("list").output.split())
    assert f"{CUDA126_VARIANT} no: No clang++" in output
    assert "apt-get install clang-19" in output


def test_without_a_lock(tiny: TinyKernel) -> None:
    """The compiler comes from its wheels also where the rest is what is here."""
    require_clang()
    result = tiny.run("build", "--variant", CUDA126_VARIANT)
    assert result.exit_code == 1
    assert "Write it with `python -m builder lock`" in result.output
    write_lock(open_repository(tiny.root), Lock({}, {}, {}))
    assert "has no wheels of CUDA 12.6" in tiny.run("build", "--variant", CUDA126_VARIANT).output


def test_capabilities_end_where_the_compiler_does() -> None:
    listed = ("7.5", "9.0", "10.0", "12.0+PTX")
    assert up_to(listed, None) == listed
    assert up_to(listed, "9.0") == ("7.5", "9.0+PTX")
    assert up_to(("8.0", "9.0+PTX"), "9.0") == ("8.0", "9.0+PTX")
    assert up_to(("8.0", "9.0"), "9.0") == ("8.0", "9.0"), "for newer devices nobody asks"
    assert up_to(("10.0",), "9.0") == ()
    repository = open_repository(ROOT)
    newest = find_variant(repository, CUDA126_VARIANT).platform.newest
    assert repository.cuda_capabilities(newest) == {"7.5", "8.0", "8.6", "8.9", "9.0+PTX"}


@pytest.mark.timeout(1500)
def test_this_kernel(toolkits: Path) -> None:
    """For one capability. Running it takes a GPU."""
    root = mirror(open_repository(ROOT), ROOT / ".build" / "nvrtc-test")
    use(toolkits, root)
    arguments = ["--root", str(root), "build", "--variant", CUDA126_VARIANT, "--capability", "9.0"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output[-5000:]
    checked = CliRunner().invoke(main, ["--root", str(root), "check"])
    assert checked.exit_code == 0, checked.output
    (module,) = (root / "build" / CUDA126_VARIANT).glob("*.so")
    assert {"libtorch_cuda.so", "libcudart.so.12"} <= set(read_shared_object(module).needed)
