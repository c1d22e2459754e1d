"""The processor architectures that are built for, and what they are called by those who compile for them."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """One architecture, named as `platform.machine()` names it."""

    name: str
    elf: str  # in a file's header, as readelf prints it
    tools: str  # Debian's prefix of compiler and binutils, on machines of other architectures
    package: str  # Debian's, of the compiler there
    cuda_target: str  # folder under `targets/` of a CUDA toolkit
    flags: re.Pattern[str]  # of GCC, that it has for no other architecture

    @property
    def is_here(self) -> bool:
        """Whether this machine is one of them."""
        return platform.machine() == self.name

    def tool(self, name: str) -> str:
        """A tool of binutils that reads and writes its files."""
        return name if self.is_here else f"{self.tools}{name}"


MACHINES = {
    machine.name: machine
    for machine in (
        Machine(
            "x86_64",
            elf="Advanced Micro Devices X86-64",
            tools="x86_64-linux-gnu-",
            package="g++-x86-64-linux-gnu",
            cuda_target="x86_64-linux",
            flags=re.compile(r"-m(avx|sse|ssse|fma|f16c|bmi|amx|popcnt|arch=x86-64)\S*"),
        ),
        Machine(
            "aarch64",
            elf="AArch64",
            tools="aarch64-linux-gnu-",
            package="g++-aarch64-linux-gnu",
            cuda_target="sbsa-linux",
            flags=re.compile(r"-m(arch=armv|cpu=(cortex|neoverse)|sve)\S*"),
        ),
    )
}


def machine_of_flags(flags: tuple[str, ...]) -> str | None:
    """The one architecture that a compiler's flags are for, None when any of them has these."""
    for machine in MACHINES.values():
        if any(machine.flags.fullmatch(flag) for flag in flags):
            return machine.name
    return None


def machine_of_variant(name: str) -> Machine | None:
    """That of a variant such as `torch-stable-abi211-cpu-aarch64-linux`; None when it has none."""
    return next((m for m in MACHINES.values() if name.endswith(f"-{m.name}-linux")), None)
