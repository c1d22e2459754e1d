"""The aarch64 variant as a kernel on this machine: its module runs under qemu, its Python here.

The module is the one that ships. Under qemu it finds a libtorch_cpu.so of some sixty functions (`program/`),
and a program that calls its ops for whoever writes to it; here `remote.py` registers those ops.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

from rich.console import Console

from builder import templates
from builder.build import build_variant
from builder.config import Repository, open_repository
from builder.exclusive import exclusive
from builder.machines import MACHINES
from builder.package import METADATA
from builder.toolchain import find_toolchain
from builder.variants import PlainVariant, Variant, known_variants
from tests.helpers.mirror import mirror

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
WORK = ROOT / ".build" / "aarch64"
MACHINE = MACHINES["aarch64"]
QEMU = "qemu-aarch64-static"
SYSROOT = "/usr/aarch64-linux-gnu"
PACKAGES = (MACHINE.package, "qemu-user-static")
FLAGS = ("-std=c++20", "-O1", "-fPIC", "-DTORCH_TARGET_VERSION=0x020b000000000000")


def missing() -> str | None:
    """Why there is no aarch64 here, None if there is."""
    absent = [
        tool for tool in (MACHINE.tool("g++"), MACHINE.tool("objdump"), QEMU) if shutil.which(tool) is None
    ]
    return f"no {', '.join(absent)}: apt-get install {' '.join(PACKAGES)}" if absent else None


def cpu_variant(repository: Repository) -> Variant:
    """The variant that is emulated."""
    known = [variant for variant in known_variants(repository) if isinstance(variant, Variant)]
    return next(v for v in known if v.backend == "cpu" and v.platform.machine == MACHINE.name)


def build() -> Path:
    """Folder of the aarch64 variant, compiled as far as it has to be; not in build/, which is for users."""
    repository = open_repository(mirror(open_repository(ROOT), WORK / "sources"))
    return build_variant(repository, cpu_variant(repository), Console()).folder


def put_together() -> Path:
    """A folder for `kernels.get_local_kernel` whose ops run in that variant's module under qemu."""
    with exclusive(WORK / "folder.lock"):
        variant = build()
        build_id = json.loads((variant / METADATA).read_text(encoding="utf-8"))["id"]
        names = {"build_id": build_id, "registers": "remote"}
        command = [QEMU, "-L", SYSROOT, str(_program()), str(variant / f"{build_id}.abi3.so")]
        files = {
            "_ops.py": templates.OPS_PY.format(**names),
            "remote.py": (HERE / "remote.py").read_text(encoding="utf-8"),
            "command.json": json.dumps(command),
        }
        root = WORK / f"kernel-{_digest(str(files) + (variant / METADATA).read_text(encoding='utf-8'))}"
        if not root.is_dir():
            stage = WORK / "stage"
            shutil.rmtree(stage, ignore_errors=True)
            # To this machine's loader it is what fits any: nothing in it is compiled for this one.
            folder = stage / "build" / PlainVariant.name
            shutil.copytree(variant, folder, ignore=shutil.ignore_patterns("*.so", "plain", "__pycache__"))
            for name, text in files.items():
                (folder / name).write_text(text, encoding="utf-8")
            stage.rename(root)
        return root


def _program() -> Path:
    """The program, compiled once, and beside it the library that it and the module need."""
    tools = find_toolchain(cpu_variant(open_repository(ROOT)))
    sources = sorted((HERE / "program").iterdir())
    texts = [path.read_text(encoding="utf-8") for path in sources]
    folder = WORK / f"program-{_digest(str([tools.versions(), FLAGS, texts]))}"
    if not folder.is_dir():
        stage = WORK / "program"
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir()
        library, program = stage / "libtorch_cpu.so", stage / "program"
        compiler = [tools.cxx, *FLAGS, "-isystem", str(tools.torch / "include")]
        as_library = ["-shared", f"-Wl,-soname,{library.name}"]
        for command in (
            [*compiler, *as_library, str(HERE / "program" / "torch.cpp"), "-o", str(library)],
            [
                *compiler,
                str(HERE / "program" / "main.cpp"),
                str(library),
                "-Wl,-rpath,$ORIGIN",
                "-o",
                str(program),
            ],
        ):
            subprocess.run(command, check=True)
        stage.rename(folder)
    return folder / "program"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]
