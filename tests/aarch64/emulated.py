"""The aarch64 variant as a kernel on this machine: its module runs under qemu, its Python here.

The module is the one that ships. Under qemu it finds a libtorch_cpu.so of some sixty functions (`program/`),
and a program that calls its ops for whoever writes to it; here `remote.py` registers those ops.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from rich.console import Console

from builder import templates
from builder.build import build_variant
from builder.config import open_repository
from builder.exclusive import exclusive
from builder.machines import MACHINES
from builder.package import METADATA
from builder.toolchain import Toolchain, find_toolchain
from builder.variants import PlainVariant, Variant, known_variants

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
WORK = ROOT / ".build" / "aarch64"
MACHINE = MACHINES["aarch64"]
QEMU = "qemu-aarch64-static"
PACKAGES = (MACHINE.package, "qemu-user-static")
FLAGS = ("-std=c++20", "-O1", "-fPIC", "-DTORCH_TARGET_VERSION=0x020b000000000000")


def missing() -> str | None:
    """Why there is no aarch64 here, None if there is."""
    absent = [
        tool for tool in (MACHINE.tool("g++"), MACHINE.tool("objdump"), QEMU) if shutil.which(tool) is None
    ]
    return f"no {', '.join(absent)}: apt-get install {' '.join(PACKAGES)}" if absent else None


def cpu_variant() -> Variant:
    """The variant that is emulated."""
    known = [v for v in known_variants(open_repository(ROOT)) if isinstance(v, Variant)]
    return next(v for v in known if v.backend == "cpu" and v.platform.machine == MACHINE.name)


def build() -> Path:
    """Folder of the aarch64 variant, compiled as far as it has to be."""
    return build_variant(open_repository(ROOT), cpu_variant(), Console()).folder


def put_together() -> Path:
    """A folder for `kernels.get_local_kernel` whose ops run in that variant's module under qemu."""
    with exclusive(WORK.with_suffix(".lock")):
        variant = build()
        build_id = json.loads((variant / METADATA).read_text(encoding="utf-8"))["id"]
        program = _compile(find_toolchain(cpu_variant()))
        # To this machine's loader it is what it would take on any: nothing in it is compiled for this one.
        target = WORK / "build" / PlainVariant.name
        stage = WORK / "stage"
        shutil.rmtree(stage, ignore_errors=True)
        shutil.copytree(variant, stage, ignore=shutil.ignore_patterns("*.so", "plain", "__pycache__"))
        names = {"build_id": build_id, "registers": "remote"}
        (stage / "_ops.py").write_text(templates.OPS_PY.format(**names), encoding="utf-8")
        shutil.copyfile(HERE / "remote.py", stage / "remote.py")
        command = [QEMU, "-L", "/usr/aarch64-linux-gnu", str(program), str(variant / f"{build_id}.abi3.so")]
        (stage / "command.json").write_text(json.dumps(command), encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        stage.rename(target)
    return WORK


def _compile(tools: Toolchain) -> Path:
    """The program, and beside it the library that it and the module need."""
    folder = WORK / "program"
    folder.mkdir(parents=True, exist_ok=True)
    compiler = [tools.cxx, *FLAGS, "-isystem", str(tools.torch / "include")]
    sources = HERE / "program"
    library, program = folder / "libtorch_cpu.so", folder / "program"
    for command in (
        [*compiler, "-shared", "-Wl,-soname,libtorch_cpu.so", str(sources / "torch.cpp"), "-o", str(library)],
        [*compiler, str(sources / "main.cpp"), str(library), "-Wl,-rpath,$ORIGIN", "-o", str(program)],
    ):
        subprocess.run(command, check=True)
    return program
