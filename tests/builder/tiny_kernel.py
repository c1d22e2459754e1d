"""A kernel repository small enough to compile in a second, to break in every way a test needs."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner, Result

from builder.cli import main
from builder.config import open_repository
from builder.errors import BuilderError
from builder.host import gcc_packages, host_facts
from builder.lock import Lock, write_lock
from builder.toolchain import find_toolchain
from builder.variants import Platform, Variant

CPU_VARIANT = "torch-stable-abi211-cpu-x86_64-linux"
CUDA_VARIANT = "torch-stable-abi211-cu130-x86_64-linux"
CUDA126_VARIANT = "torch-stable-abi211-cu126-x86_64-linux"
AARCH64_VARIANT = "torch-stable-abi211-cpu-aarch64-linux"
CUDA_AARCH64_VARIANT = "torch-stable-abi211-cu130-aarch64-linux"
PLAIN_VARIANT = "torch-universal"

BUILD_TOML = """\
[general]
name = "tiny-kernel"
version = 1
edition = 5
license = "Apache-2.0"
backends = ["cpu", "cuda"]

[general.hub]
repo-id = "tiny/kernel"

[torch]
stable-abi = "2.11"
include = ["kernel_src"]
cxx-flags = ["-std=c++20", "-O1"]
src = ["torch-ext/torch_binding.cpp"]

[kernel.cpu]
backend = "cpu"
depends = []
cxx-flags = ["-O1"]
src = ["kernel_src/scale.cpp", "kernel_src/scale.h"]

[kernel.cpu_avx512]
backend = "cpu"
depends = []
cxx-flags = ["-O3", "-mavx512f"]
src = ["kernel_src/isa_avx512.cpp"]

[kernel.cuda_cpu]
backend = "cuda"
depends = []
cxx-flags = ["-O1"]
src = ["kernel_src/scale.cpp", "kernel_src/scale.h"]

[kernel.cuda_cpu_avx512]
backend = "cuda"
depends = []
cxx-flags = ["-O3", "-mavx512f"]
src = ["kernel_src/isa_avx512.cpp"]

[kernel.cuda]
backend = "cuda"
depends = []
cuda-capabilities = ["8.0", "9.0+PTX"]
cuda-flags = ["-O1"]
src = ["kernel_src/device.cu"]
"""

SCALE_H = """\
#pragma once
#include <cstdint>
namespace tiny_kernel::cpu {
inline constexpr float kFactor = 2.0f;
void scale(const float* x, float* y, int64_t n);
namespace avx512 {
void scale(const float* x, float* y, int64_t n);
}
}  // namespace tiny_kernel::cpu
"""

SCALE_CPP = """\
#include "scale.h"
namespace tiny_kernel::cpu {
void scale(const float* x, float* y, int64_t n) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return avx512::scale(x, y, n);
#endif
  for (int64_t i = 0; i < n; ++i) y[i] = kFactor * x[i];
}
}  // namespace tiny_kernel::cpu
"""

ISA_CPP = """\
#include "scale.h"
namespace tiny_kernel::cpu::avx512 {
void scale(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = kFactor * x[i];
}
}  // namespace tiny_kernel::cpu::avx512
"""

BINDING_CPP = """\
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "registration.h"
#include "scale.h"

static torch::stable::Tensor scale(const torch::stable::Tensor& x) {
  auto y = torch::stable::empty_like(x);
  const auto* from = static_cast<const float*>(x.data_ptr());
  tiny_kernel::cpu::scale(from, static_cast<float*>(y.data_ptr()), x.numel());
  return y;
}

STABLE_TORCH_LIBRARY_EXPAND(TORCH_EXTENSION_NAME, ops) { ops.def("scale(Tensor x) -> Tensor"); }
STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CPU, ops) { ops.impl("scale", TORCH_BOX(&scale)); }
REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
"""

DEVICE_CU = """\
#include <cuda_runtime_api.h>
extern "C" int aoti_torch_get_current_cuda_stream(int device, void** stream);
namespace tiny_kernel {
__global__ void fill(int* out) { out[threadIdx.x] = 1; }
void launch(int* out) {
  void* stream = nullptr;
  if (aoti_torch_get_current_cuda_stream(0, &stream) == 0) fill<<<1, 32, 0, (cudaStream_t)stream>>>(out);
}
void (*volatile keep)(int*) = launch;
}  // namespace tiny_kernel
"""

INIT_PY = """\
from __future__ import annotations

from ._ops import ops

__all__ = ["scale"]


def scale(x):
    return ops.scale(x)
"""

PLAIN_PY = """\
import torch

from .._ops import add_op_namespace_prefix

torch.library.define(add_op_namespace_prefix("scale"), "(Tensor x) -> Tensor")
torch.library.impl(add_op_namespace_prefix("scale"), "default")(lambda x: 2 * x)
"""


@dataclass(frozen=True)
class TinyKernel:
    """The repository and its builder."""

    root: Path

    @classmethod
    def create(cls, root: Path) -> TinyKernel:
        """Write the repository and commit it."""
        kernel = cls(root)
        files = {
            "build.toml": BUILD_TOML,
            "CARD.md": "# A tiny kernel\n",
            ".gitignore": "build/\n.build/\n",
            "kernel_src/scale.h": SCALE_H,
            "kernel_src/scale.cpp": SCALE_CPP,
            "kernel_src/isa_avx512.cpp": ISA_CPP,
            "kernel_src/device.cu": DEVICE_CU,
            "torch-ext/torch_binding.cpp": BINDING_CPP,
            "torch-ext/tiny_kernel/__init__.py": INIT_PY,
        }
        for name, text in files.items():
            kernel.write(name, text)
        kernel.git("init", "--quiet")
        kernel.commit()
        return kernel

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def replace(self, name: str, old: str, new: str) -> None:
        """Replace a text that must be there."""
        text = (self.root / name).read_text()
        assert old in text, (name, old)
        self.write(name, text.replace(old, new))

    def append(self, name: str, text: str) -> None:
        self.write(name, (self.root / name).read_text() + text)

    def git(self, *arguments: str) -> str:
        identity = {
            f"GIT_{who}_{what}": "tiny" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
        }
        command = ["git", "-C", str(self.root), *arguments]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, env={**os.environ, **identity}
        )
        return done.stdout.strip()

    def commit(self) -> str:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "-m", "Change the kernel")
        return self.git("rev-parse", "HEAD")

    def lock(self) -> None:
        """Lock this machine's tools, without CUDA."""
        tools = find_toolchain(Variant(Platform("cpu", "x86_64"), "2.11"))
        compilers = {"x86_64": gcc_packages(tools.cxx)}
        write_lock(open_repository(self.root), Lock(host_facts(tools), compilers, {}))

    def run(self, *arguments: str) -> Result:
        """Run `python -m builder --root <this> …` in this process."""
        return CliRunner().invoke(main, ["--root", str(self.root), *arguments], catch_exceptions=False)

    def build(self, *arguments: str) -> Result:
        """Build, which must succeed."""
        result = self.run("build", *arguments)
        assert result.exit_code == 0, result.output
        return result

    def variant(self, name: str = CPU_VARIANT) -> Path:
        return self.root / "build" / name

    def module(self, name: str = CPU_VARIANT) -> Path:
        """The compiled module, of which there must be exactly one."""
        (path,) = self.variant(name).glob("*.so")
        return path


def toolkit() -> str:
    """`toolkit` where the CUDA variant can be built, else `no toolkit`: the name of the parametrised test."""
    try:
        find_toolchain(Variant(Platform("cuda", "x86_64", cuda="13.0"), "2.11"))
    except BuilderError:
        return "no toolkit"
    return "toolkit"
