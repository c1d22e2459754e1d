"""The CUDA kernels compiled for the CPU, as a kernel that `kernels.get_local_kernel` loads.

What is compiled is a copy of the sources in which `emulator/` takes the places of the CUDA headers and of
what knows about devices, put together as a repository of its own for the builder.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from unittest import mock

from rich.console import Console

from builder.build import build_variant
from builder.config import open_repository
from builder.exclusive import exclusive
from builder.ninja_file import write_if_changed
from builder.toolchain import find_toolchain
from builder.variants import PLATFORMS, Variant, known_variants
from tests.simt.plain_cuda import to_cxx

ROOT = Path(__file__).resolve().parents[2]
EMULATOR = Path(__file__).resolve().parent / "emulator"
WORK = ROOT / ".build" / "simt"

# Of a checkout: what the emulator has its own version of, and what it does without.
REPLACED = {
    "kernel_src/cuda/launch.h",
    "kernel_src/cuda/ptx.cuh",
    "torch-ext/device_kernels.cpp",
    "torch-ext/torch_binding_cuda.cpp",
    "torch-ext/workers.cpp",
}
OF_EMULATOR = ("block.cpp", "launches.cpp", "memory.cpp", "races.cpp", "threads.cpp")
FLAGS = ["-std=c++20", "-O1", "-ffp-contract=off", "-fvisibility=hidden"]
# What nvcc does by itself, for capability 9.0.
AS_CUDA = ["-D__CUDACC__", "-D__CUDA_ARCH__=900", "-include", "cuda_runtime_api.h"]
# Every access to memory is a call of emulator/races.cpp, which is linked instead of g++'s own library.
WITH_RACES = ["-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0"]

BUILD_TOML = """\
[general]
name = "flash-rwkv-simt"
version = 1
edition = 5
license = "Apache-2.0"
backends = ["cpu"]

[torch]
stable-abi = "2.11"
include = ["emulator", "torch-ext", "kernel_src", "kernel_src/include"]
cxx-flags = {flags}
src = {binding}

[kernel.simt]
backend = "cpu"
depends = []
include = ["emulator", "kernel_src", "kernel_src/include"]
cxx-flags = {cuda_flags}
src = {kernels}

[kernel.emulator]
backend = "cpu"
depends = []
include = ["emulator"]
cxx-flags = {emulator_flags}
src = {emulator}
"""


def load(sources: Path = ROOT, jobs: int | None = None, races: bool = False) -> ModuleType:
    """The kernel of a checkout, compiled as far as it has to be.

    Args:
        races: find races of warps in shared memory, several times more slowly.

    Raises:
        BuilderError: a source does not compile; the compiler's messages have been printed.
        ValueError: a source has inline PTX that the emulator does not know.
    """
    from kernels import get_local_kernel

    sources = sources.resolve()
    name = "own" if sources == ROOT else hashlib.sha256(str(sources).encode()).hexdigest()[:10]
    name += "-races" if races else ""
    root = WORK / name
    with exclusive(WORK / f"{name}.lock"):
        _write(root, _copies(sources, races))
        repository = open_repository(root)
        build_variant(repository, known_variants(repository)[0], Console(), jobs=jobs)
    return get_local_kernel(root)


@contextmanager
def setting(order: str = "forward", processors: int = 132) -> Iterator[None]:
    """In which order threads run (`forward`, `reverse`, or the seed of a random one), on how large a GPU."""
    names = {"FLASH_RWKV_SIMT_ORDER": order, "FLASH_RWKV_SIMT_PROCESSORS": str(processors)}
    with mock.patch.dict(os.environ, names):
        yield


def load_library(*kernels: Path, races: bool = False) -> ctypes.CDLL:
    """CUDA sources by themselves, with the functions that they declare `extern "C"`."""
    files = {f"{path.name}.cpp": to_cxx(path.read_text(encoding="utf-8")) for path in kernels}
    files |= {path.relative_to(EMULATOR).as_posix(): path.read_text(encoding="utf-8") for path in _emulator()}
    of_kernels = WITH_RACES if races else []
    content = "".join(f"{name}\0{files[name]}\0" for name in sorted(files)) + str(
        FLAGS + AS_CUDA + of_kernels
    )
    root = WORK / f"library-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
    with exclusive(WORK / "library.lock"):
        if not (root / "library.so").is_file():
            _write(root, files)
            compiler = find_toolchain(Variant(PLATFORMS[0], "2.11")).cxx
            flags = ["-fPIC", "-I.", *(flag for flag in FLAGS if "visibility" not in flag), *AS_CUDA]
            objects = []
            for name in files:
                if name.endswith(".cu.cpp") or name in OF_EMULATOR:
                    options = [] if name in OF_EMULATOR else of_kernels
                    objects.append(f"{name}.o")
                    command = [compiler, "-c", *flags, *options, name, "-o", objects[-1]]
                    subprocess.run(command, cwd=root, check=True)
            subprocess.run([compiler, "-shared", *objects, "-o", "partial.so"], cwd=root, check=True)
            (root / "partial.so").rename(root / "library.so")
    return ctypes.CDLL(str(root / "library.so"))


def _emulator() -> list[Path]:
    return sorted(path for path in EMULATOR.rglob("*") if path.is_file())


def _copies(sources: Path, races: bool) -> dict[str, str]:
    """What is compiled, by its place in the repository that is put together."""
    files = {f"emulator/{path.relative_to(EMULATOR).as_posix()}": _text(path) for path in _emulator()}
    kernels = [path for path in (sources / "kernel_src" / "cuda").rglob("*") if path.is_file()]
    others = [
        *(sources / "kernel_src" / "include").glob("*.h"),
        sources / "kernel_src" / "cpu" / "kernels.h",
        *(sources / "torch-ext").glob("*.h"),
        *(sources / "torch-ext").glob("*.cpp"),
        *(sources / "torch-ext" / "flash_rwkv").glob("*.py"),
    ]
    for path in (*kernels, *others):
        name = path.relative_to(sources).as_posix()
        if name in REPLACED:
            continue
        # To the binding no tensor is on the CPU: it copies what kernels cannot read, and reads no values.
        text = to_cxx(_text(path)) if path in kernels else _text(path).replace(".is_cpu()", ".is_cuda()")
        files[
            f"{name}.cpp" if path.suffix == ".cu" else name.replace("/flash_rwkv/", "/flash_rwkv_simt/")
        ] = text
    compiled = [name for name in sorted(files) if name.endswith(".cpp")]
    binding = [
        name for name in compiled if name.startswith("torch-ext/") or name.endswith("/device_kernels.cpp")
    ]
    emulator = [f"emulator/{name}" for name in OF_EMULATOR]
    files["build.toml"] = BUILD_TOML.format(
        flags=FLAGS,
        cuda_flags=FLAGS + AS_CUDA + (WITH_RACES if races else []),
        emulator_flags=FLAGS + AS_CUDA,
        binding=binding,
        kernels=[name for name in compiled if name not in (*binding, *emulator)],
        emulator=emulator,
    )
    return files


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _write(root: Path, files: dict[str, str]) -> None:
    """Make these the files of the folder; those that did not change keep their time."""
    old = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.is_file() and path.relative_to(root).parts[0] not in (".build", "build")
    }
    for name in old - files.keys():
        (root / name).unlink()
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_if_changed(root / name, text)
