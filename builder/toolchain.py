"""What is on this machine: compiler, CUDA toolkit, Torch's headers, ninja."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from builder.errors import BuilderError
from builder.machines import MACHINES, Machine
from builder.variants import Platform, Variant

OLDEST_GCC = 11
OLDEST_CLANG = 17
CLANGS = ("clang++-19", "clang++-18", "clang++-17", "clang++")


@dataclass(frozen=True)
class Cuda:
    """A CUDA toolkit. One without nvcc has its compiler as a library, and takes clang for hosts' code."""

    version: str  # of the compiler in full, e.g. "13.0.88"
    root: Path
    cudart: Path
    nvcc: str | None = None
    clang: str | None = None
    clang_version: str | None = None

    @property
    def include(self) -> Path:
        return self.root / "include"

    def versions(self) -> dict[str, str]:
        """Name and version of each compiler."""
        if self.nvcc:
            return {"nvcc": self.version}
        return {"nvrtc": self.version, "clang": self.clang_version}


@dataclass(frozen=True)
class Toolchain:
    """Everything one variant is compiled with."""

    cxx: str
    cxx_version: str
    objcopy: str
    ninja: str
    ninja_version: str
    torch: Path
    torch_version: str
    python_include: Path
    cuda: Cuda | None = None

    def versions(self) -> dict[str, str]:
        """Name and version of each tool, for the metadata."""
        versions = {
            "cxx": self.cxx_version,
            "ninja": self.ninja_version,
            "torch-headers": self.torch_version.partition("+")[0],  # the same in every build of it
        }
        return versions | (self.cuda.versions() if self.cuda else {})


def find_toolchain(variant: Variant, toolkit: Path | None = None) -> Toolchain:
    """The tools for a variant, with that toolkit of CUDA, or else the one of this machine.

    Raises:
        BuilderError: the first one that is missing or of a wrong version.
    """
    machine = _machine_of(variant)
    cxx, cxx_version = _find_gcc(machine)
    ninja, ninja_version = _find_ninja()
    torch, torch_version = _find_torch(variant.torch)
    return Toolchain(
        cxx=cxx,
        cxx_version=cxx_version,
        objcopy=machine.tool("objcopy"),
        ninja=ninja,
        ninja_version=ninja_version,
        torch=torch,
        torch_version=torch_version,
        python_include=_find_python_headers(),
        cuda=_cuda_of(variant.platform, toolkit, machine),
    )


def refuse_what_is_missing(variant: Variant) -> None:
    """Look for the tools of this machine alone: what the lock has is not fetched.

    Raises:
        BuilderError: the first one that is missing or of a wrong version.
    """
    if variant.platform.nvrtc:
        find_toolchain(variant.of_the_cpu())
        find_clang()
    else:
        find_toolchain(variant)


def _run(*command: str) -> str:
    """Standard output and error of a command, "" when it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout + done.stderr


def _machine_of(variant: Variant) -> Machine:
    machine = MACHINES.get(variant.platform.machine)
    if machine is None:
        raise BuilderError(
            f"{variant.name} is of no architecture that this builder compiles for: {', '.join(MACHINES)}."
        )
    if platform.system() != "Linux":
        raise BuilderError(f"{variant.name} is built under Linux; this is {platform.system()}.")
    return machine


def _find_gcc(machine: Machine) -> tuple[str, str]:
    """The compiler for an architecture: CXX or g++ on such a machine, Debian's cross compiler elsewhere."""
    wanted = os.environ.get("CXX", "g++") if machine.is_here else machine.tool("g++")
    path = shutil.which(wanted)
    if path is None:
        package, otherwise = ("g++", ", or point CXX at one") if machine.is_here else (machine.package, "")
        raise BuilderError(
            f"No C++ compiler for {machine.name}: {wanted} is not on PATH. Install g++ {OLDEST_GCC} or newer "
            f"(Debian: apt-get install {package}){otherwise}."
        )
    banner = _run(path, "--version").partition("\n")[0]
    version = _run(path, "-dumpfullversion").strip()
    if "Free Software Foundation" not in _run(path, "--version") or not version[:1].isdigit():
        raise BuilderError(f"{path} is not GCC ({banner or 'it does not run'}). Point CXX at a g++.")
    if int(version.split(".")[0]) < OLDEST_GCC:
        raise BuilderError(f"{path} is GCC {version}; C++20 needs {OLDEST_GCC} or newer. Point CXX at one.")
    return path, banner


def _find_ninja() -> tuple[str, str]:
    spec = importlib.util.find_spec("ninja")
    if spec is not None:
        import ninja

        path = shutil.which("ninja", path=ninja.BIN_DIR)
    else:
        path = None
    path = path or shutil.which("ninja")
    if path is None:
        raise BuilderError("No ninja: install it with `pip install ninja`.")
    return path, _run(path, "--version").strip()


def _find_torch(oldest: str) -> tuple[Path, str]:
    """Torch's folder and version, without the seconds that importing it takes."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise BuilderError(
            f"Torch is not installed in this Python. Install {oldest} or newer, any build of it: "
            "`pip install torch`."
        )
    root = Path(spec.submodule_search_locations[0])
    # The wheel's metadata may lack the local part ("+cu130") that Torch itself reports.
    match = re.search(r"__version__ = '([^']+)'", (root / "version.py").read_text(encoding="utf-8"))
    version = match.group(1) if match else importlib.metadata.version("torch")
    found, needed = (tuple(int(n) for n in v.split("+")[0].split(".")[:2]) for v in (version, oldest))
    if found < needed:
        raise BuilderError(
            f"Torch {version} is installed, but the stable ABI of this kernel is that of {oldest} "
            f"(stable-abi in build.toml). Install Torch {oldest} or newer."
        )
    if not (root / "include" / "torch" / "csrc" / "stable" / "library.h").is_file():
        raise BuilderError(f"Torch {version} at {root} has no C++ headers. Install Torch from its wheel.")
    return root, version


def _find_python_headers() -> Path:
    path = Path(sysconfig.get_paths()["include"])
    if not (path / "Python.h").is_file():
        raise BuilderError(
            f"Python's headers are not at {path}. Install them (Debian: apt-get install python3-dev)."
        )
    return path


def find_clang() -> tuple[str, str]:
    """clang++, which compiles the host's part of CUDA sources, and its version.

    Raises:
        BuilderError: there is none, or it is too old.
    """
    path = next(filter(None, map(shutil.which, CLANGS)), None)
    if path is None:
        raise BuilderError(
            "No clang++, which compiles the host's part of CUDA sources where there is no nvcc: install "
            f"clang {OLDEST_CLANG} or newer (Debian: apt-get install clang-19)."
        )
    banner = _run(path, "--version").partition("\n")[0]
    match = re.search(r"clang version (\d+)", banner)
    if match is None or int(match.group(1)) < OLDEST_CLANG:
        raise BuilderError(f"{path} is {banner or 'not clang'}; CUDA sources need {OLDEST_CLANG} or newer.")
    return path, banner


def _cuda_of(platform: Platform, toolkit: Path | None, machine: Machine) -> Cuda | None:
    if platform.cuda is None:
        return None
    if not platform.nvrtc:
        return _find_cuda(platform.cuda, str(toolkit / "bin/nvcc") if toolkit else None, machine)
    if toolkit is None:
        raise BuilderError(f"The compiler of CUDA {platform.cuda} comes as wheels of builder/toolchain.lock.")
    clang, banner = find_clang()
    (wheel,) = toolkit.parents[1].glob("nvidia_cuda_nvrtc_cu*-*.dist-info")
    version = wheel.name.removesuffix(".dist-info").partition("-")[2]
    cudart = toolkit / "lib" / f"libcudart.so.{platform.cuda.partition('.')[0]}"
    return Cuda(version, toolkit, cudart, clang=clang, clang_version=banner)


def _find_cuda(wanted: str, given: str | None, machine: Machine) -> Cuda:
    candidates = [
        given,
        os.environ.get("CUDACXX"),
        os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", "nvcc"),
        shutil.which("nvcc"),
        f"/usr/local/cuda-{wanted}/bin/nvcc",
    ]
    nvcc = next((path for path in candidates if path and shutil.which(path)), None)
    if nvcc is None:
        raise BuilderError(
            f"No nvcc: this variant needs the CUDA {wanted} toolkit. Put its nvcc on PATH, or set CUDA_HOME."
        )
    match = re.search(r"release (\d+\.\d+), V([\d.]+)", _run(nvcc, "--version"))
    release, version = match.groups() if match else ("unknown", "unknown")
    if release != wanted:
        raise BuilderError(
            f"{nvcc} is of CUDA {release}, but this variant is made with CUDA {wanted}: its name promises "
            f"that runtime. Put the nvcc of CUDA {wanted} first on PATH, or set CUDA_HOME."
        )
    return _cuda_toolkit(nvcc, version, wanted, machine)


def _cuda_toolkit(nvcc: str, version: str, wanted: str, machine: Machine) -> Cuda:
    """Where nvcc's own headers and runtime are; nvcc on PATH may be a wrapper or a link."""
    match = re.search(r"^#\$ TOP=(.+)$", _run(nvcc, "--dryrun", "-c", "-x", "cu", os.devnull), re.MULTILINE)
    if match is None:
        raise BuilderError(f"{nvcc} does not say where its toolkit is (`nvcc --dryrun`). Is it complete?")
    root = Path(match.group(1)).resolve()
    soname = f"libcudart.so.{wanted.split('.')[0]}"
    for folder in (f"targets/{machine.cuda_target}/lib", *(("lib64", "lib") if machine.is_here else ())):
        if (root / folder / soname).is_file():
            return Cuda(nvcc=nvcc, version=version, root=root, cudart=root / folder / soname)
    raise BuilderError(
        f"{root} has no {soname} of {machine.name}: install the CUDA runtime of that toolkit for "
        f"{machine.cuda_target}, or build with --locked, which fetches it."
    )
