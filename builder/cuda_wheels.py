"""CUDA's compiler as wheels of a package index: which there are, and unpacked together into one toolkit.

The wheels of this machine are the toolkit; of those of other architectures it takes the runtime that programs
link with. Before CUDA 13 there is no nvcc among them, but the same compiler as a library.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir

from rich.console import Console

from builder.errors import BuilderError
from builder.exclusive import exclusive
from builder.machines import MACHINES

PARTS = ("nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt", "nvidia-cuda-runtime", "nvidia-cuda-cccl")
# Of nvcc these have its headers, which those of the runtime include, and no nvcc.
LIBRARY_PARTS = tuple(
    f"nvidia-{part}-cu12" for part in ("cuda-nvrtc", "nvfatbin", "cuda-nvcc", "cuda-runtime", "cuda-cccl")
)
RUNTIME = "nvidia-cuda-runtime"
PROGRAM_FOLDERS = ("bin", "nvvm/bin")  # wheels do not say what may be run


@dataclass(frozen=True)
class Wheel:
    """One file of the index. `machine`: the other architecture that it is for, None for this machine."""

    name: str
    version: str
    file: str
    sha256: str
    machine: str | None = None


def resolve_wheels(release: str, machines: tuple[str, ...] = ()) -> tuple[Wheel, ...]:
    """The newest wheels of a CUDA release (`13.0`), with what it takes to build for these architectures too.

    Nothing is downloaded.

    Raises:
        BuilderError: the index cannot be asked, or has none.
    """
    others = [name for name in machines if not MACHINES[name].is_here]
    wheels = list(_resolve(parts_of(release), release, None))
    for name in others:
        wheels += _resolve((RUNTIME,), release, name)
    return tuple(wheels)


def parts_of(release: str) -> tuple[str, ...]:
    """The wheels that make up the toolkit of a release."""
    return LIBRARY_PARTS if release.startswith("12.") else PARTS


def _resolve(parts: tuple[str, ...], release: str, machine: str | None) -> Iterator[Wheel]:
    wanted = [f"{part}=={release}.*" for part in parts]
    # Nothing is installed, but pip resolves for another platform only if told where to install to.
    target = ["--target", gettempdir()] if machine else []
    options = ["--dry-run", "--ignore-installed", "--report", "-", *target, *_platform(machine)]
    report = json.loads(_pip("install", *options, *wanted))
    for item in sorted(report["install"], key=lambda item: item["metadata"]["name"]):
        yield Wheel(
            name=item["metadata"]["name"],
            version=item["metadata"]["version"],
            file=item["download_info"]["url"].rpartition("/")[2],
            sha256=item["download_info"]["archive_info"]["hashes"]["sha256"],
            machine=machine,
        )


def _platform(machine: str | None) -> list[str]:
    return ["--platform", f"manylinux2014_{machine}"] if machine else []


def fetch_toolkit(wheels: tuple[Wheel, ...], store: Path, console: Console) -> Path:
    """The root of the toolkit that the wheels make up, downloaded and unpacked once.

    Raises:
        BuilderError: a wheel cannot be had, or is not the one of that digest.
    """
    digest = hashlib.sha256(repr(wheels).encode()).hexdigest()[:16]
    toolkit = store / f"cuda-{digest}"
    with exclusive(store / f"cuda-{digest}.lock"):
        if not toolkit.is_dir():
            stage = store / f"cuda-{digest}.part"
            shutil.rmtree(stage, ignore_errors=True)
            with console.status(f"fetching {len(wheels)} wheels of CUDA, at most 110 MB"):
                _fetch(wheels, stage)
            stage.rename(toolkit)
    return _root(toolkit)


def _fetch(wheels: tuple[Wheel, ...], stage: Path) -> None:
    """Put a toolkit together, with the runtimes of other architectures under its targets/."""
    _unpack([wheel for wheel in wheels if wheel.machine is None], stage)
    _merge(stage / "nvidia")
    root = _root(stage)
    for machine in {wheel.machine for wheel in wheels} - {None}:
        other = stage / machine
        _unpack([wheel for wheel in wheels if wheel.machine == machine], other)
        target = root / "targets" / MACHINES[machine].cuda_target
        target.parent.mkdir(exist_ok=True)
        next(other.glob("nvidia/*")).rename(target)
        shutil.rmtree(other)
    for folder in PROGRAM_FOLDERS:
        for program in stage.glob(f"nvidia/*/{folder}/*"):
            if program.is_file():
                program.chmod(0o755)


def _root(stage: Path) -> Path:
    (root,) = (path for path in (stage / "nvidia").iterdir() if path.is_dir())
    return root


def _merge(folder: Path) -> None:
    """Make one toolkit of wheels that have a folder each."""
    parts = [path for path in folder.iterdir() if path.is_dir()]
    for part in parts if len(parts) > 1 else ():
        shutil.copytree(part, folder / "cuda", dirs_exist_ok=True)
        shutil.rmtree(part)


def _unpack(wheels: list[Wheel], folder: Path) -> None:
    """Download wheels of one architecture by their digests, and take them apart."""
    downloads = folder / "wheels"
    downloads.mkdir(parents=True)
    requirements = downloads / "requirements.txt"
    lines = (f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n" for wheel in wheels)
    requirements.write_text("".join(lines), encoding="utf-8")
    options = ["--require-hashes", *_platform(wheels[0].machine), "--dest", str(downloads)]
    _pip("download", *options, "--requirement", str(requirements))
    for wheel in sorted(downloads.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    shutil.rmtree(downloads)


def _pip(command: str, *arguments: str) -> str:
    """Standard output of pip; which index it asks is the user's configuration."""
    common = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", command, *common, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise BuilderError(
            f"pip {command} of CUDA's wheels failed: {' '.join(errors) or done.stderr.strip()[-500:]}. Check "
            "the network, or give pip a folder of the wheels with PIP_FIND_LINKS."
        )
    return done.stdout
