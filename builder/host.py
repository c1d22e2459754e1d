"""What of this machine shows in the bytes of a build."""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
import subprocess
from pathlib import Path

from builder.errors import BuilderError
from builder.toolchain import Toolchain

# What g++ runs and links, by the names under which it finds them itself.
PROGRAMS = ("cc1plus", "collect2", "as", "ld", "objcopy")
FILES = ("libstdc++.so", "libstdc++.a", "libgcc_s.so", "crtbeginS.o", "crti.o")
# What clang is made of, beside itself.
CLANG_LIBRARIES = re.compile(r"=> (\S*/lib(?:LLVM|clang-cpp)\S*)")
# Of Torch's headers a stable-ABI kernel includes these alone.
TORCH_HEADERS = ("torch/csrc/stable", "torch/csrc/inductor/aoti_torch/c", "torch/headeronly")


def host_facts(toolchain: Toolchain) -> dict[str, str]:
    """Names and versions of Python, ninja and Torch's headers."""
    return {
        "ninja": toolchain.ninja_version,
        "python": platform.python_version(),
        "torch-headers": toolchain.versions()["torch-headers"],
        "torch-headers-sha256": _digest(toolchain.torch / "include"),
    }


def _digest(include: Path) -> str:
    digest = hashlib.sha256()
    headers = (path for folder in TORCH_HEADERS for path in (include / folder).rglob("*.h"))
    for path in sorted(headers):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(include).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def gcc_packages(cxx: str) -> dict[str, str]:
    """Version of every Debian package that owns a part of a g++.

    Raises:
        BuilderError: there is no dpkg to ask, or a part came with no package.
    """
    parts = [shutil.which(cxx)]
    parts += [shutil.which(_ask(cxx, f"-print-prog-name={name}")) for name in PROGRAMS]
    parts += [_ask(cxx, f"-print-file-name={name}") for name in FILES]
    return _packages(parts)


def clang_packages(clang: str) -> dict[str, str]:
    """Version of every Debian package that owns a part of a clang++.

    Raises:
        BuilderError: there is no dpkg to ask, or a part came with no package.
    """
    program = Path(clang).resolve()
    headers = Path(_ask(clang, "-print-resource-dir")) / "include" / "__clang_cuda_runtime_wrapper.h"
    return _packages([str(program), str(headers), *CLANG_LIBRARIES.findall(_ask("ldd", str(program)))])


def _packages(parts: list[str | None]) -> dict[str, str]:
    if shutil.which("dpkg-query") is None:
        raise BuilderError(
            "A locked build takes its compiler from Debian's packages, and there is no dpkg here. Build "
            "under the system of builder/toolchain.lock, or without --locked."
        )
    owners = {_owner(Path(part).resolve()) for part in parts if part}
    versions = {owner: _ask("dpkg-query", "-W", "-f", "${Version}", owner) for owner in sorted(owners)}
    return {owner.partition(":")[0]: version for owner, version in versions.items()}


def _owner(path: Path) -> str:
    """The package that a file came with, e.g. `libc6-dev:amd64`."""
    found = _ask("dpkg-query", "-S", str(path))
    if not found:
        raise BuilderError(
            f"{path}, a part of the compiler, came with no package, so no lock can say what it is. Point CXX "
            "at a g++ that apt-get installed, or build without --locked."
        )
    return found.partition(": ")[0].partition(",")[0]


def _ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
