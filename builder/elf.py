"""Reads what the checks and comparisons need from a shared object, with binutils."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from builder.errors import BuilderError
from builder.machines import Machine

MACHINE = re.compile(r"^ *Machine: +(.+)$")
DYNAMIC = re.compile(r"\((NEEDED|RPATH|RUNPATH)\).*\[(.*)\]")
SECTION = re.compile(r"\[ *\d+\] (\S+) +(\w+) +([0-9a-f]+) ([0-9a-f]+) ([0-9a-f]+) ")
FUNCTION = re.compile(r"^[0-9a-f]+ <(.+)>:$")


@dataclass
class SharedObject:
    """Architecture, dynamic section and dynamic symbols of one file."""

    machine: str = ""  # as readelf prints it
    needed: list[str] = field(default_factory=list)
    run_paths: list[str] = field(default_factory=list)
    exported: list[str] = field(default_factory=list)
    unversioned_imports: list[str] = field(default_factory=list)


def read_shared_object(path: Path) -> SharedObject:
    """Read the dynamic section and symbol table.

    Raises:
        BuilderError: readelf is missing or refuses the file.
    """
    result = SharedObject()
    for line in _lines("readelf", "--file-header", "--dynamic", "--wide", str(path)):
        if match := MACHINE.match(line):
            result.machine = match.group(1)
        elif match := DYNAMIC.search(line):
            (result.needed if match.group(1) == "NEEDED" else result.run_paths).append(match.group(2))
    for line in _lines("readelf", "--dyn-syms", "--wide", str(path)):
        columns = line.split()
        if len(columns) < 8 or not columns[0].rstrip(":").isdigit():
            continue
        binding, section, name = columns[4], columns[6], columns[7]
        if section != "UND":
            if binding != "LOCAL":  # some linkers list sections too
                result.exported.append(name)
        elif "@" not in name and binding != "WEAK":
            result.unversioned_imports.append(name)
    return result


@dataclass(frozen=True)
class Section:
    """A piece of a file that is loaded at an address, or at none (0)."""

    name: str
    address: int
    offset: int
    size: int

    def content(self, path: Path) -> bytes:
        return path.read_bytes()[self.offset : self.offset + self.size]


def read_sections(path: Path) -> list[Section]:
    """Sections in the order of the file; those that take no place in it have no size."""
    found = []
    for line in _lines("readelf", "--sections", "--wide", str(path)):
        if match := SECTION.search(line):
            name, kind, *numbers = match.groups()
            address, offset, size = (int(number, 16) for number in numbers)
            found.append(Section(name, address, offset, 0 if kind == "NOBITS" else size))
    return found


def symbol_at(path: Path, address: int) -> str | None:
    """Demangled name of the symbol that covers an address."""
    for line in _lines("readelf", "--symbols", "--wide", "--demangle", str(path)):
        columns = line.split(maxsplit=7)
        if len(columns) == 8 and columns[0].rstrip(":").isdigit() and columns[3] in ("FUNC", "OBJECT"):
            begin, size = int(columns[1], 16), int(columns[2], 0)
            if begin <= address < begin + size:
                return columns[7]
    return None


def instructions(path: Path, machine: Machine) -> Iterator[tuple[str, str]]:
    """(demangled function, instruction) of every machine instruction in the file."""
    function = ""
    objdump = machine.tool("objdump")
    for line in _lines(objdump, "--disassemble", "--demangle", "--no-show-raw-insn", str(path)):
        if match := FUNCTION.match(line):
            function = match.group(1)
        elif "\t" in line:
            yield function, line.split("\t", 1)[1].partition("#")[0].strip()


def _lines(tool: str, *arguments: str) -> list[str]:
    if shutil.which(tool) is None:
        package = "-".join(["binutils", *tool.replace("_", "-").split("-")[:-1]])
        raise BuilderError(f"No {tool}: install binutils (Debian: apt-get install {package}).")
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuilderError(f"{tool} cannot read {arguments[-1]}: {done.stderr.strip()}")
    return done.stdout.splitlines()
