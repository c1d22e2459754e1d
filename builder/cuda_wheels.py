"""CUDA's compiler as wheels of a package index: which there are, and unpacked together into one toolkit."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from builder.errors import BuilderError
from builder.exclusive import exclusive

PARTS = ("nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt", "nvidia-cuda-runtime", "nvidia-cuda-cccl")
PROGRAM_FOLDERS = ("bin", "nvvm/bin")  # wheels do not say what may be run


@dataclass(frozen=True)
class Wheel:
    """One file of the index."""

    name: str
    version: str
    file: str
    sha256: str


def resolve_wheels(release: str) -> tuple[Wheel, ...]:
    """The newest wheels of a CUDA release (`13.0`) for this machine; nothing is downloaded.

    Raises:
        BuilderError: the index cannot be asked, or has none.
    """
    wanted = [f"{part}=={release}.*" for part in PARTS]
    report = _pip("install", "--dry-run", "--ignore-installed", "--report", "-", *wanted)
    return tuple(
        Wheel(
            name=item["metadata"]["name"],
            version=item["metadata"]["version"],
            file=item["download_info"]["url"].rpartition("/")[2],
            sha256=item["download_info"]["archive_info"]["hashes"]["sha256"],
        )
        for item in sorted(json.loads(report)["install"], key=lambda item: item["metadata"]["name"])
    )


def fetch_nvcc(wheels: tuple[Wheel, ...], store: Path, console: Console) -> str:
    """nvcc of the toolkit that the wheels make up, downloaded and unpacked once.

    Raises:
        BuilderError: a wheel cannot be had, or is not the one of that digest.
    """
    digest = hashlib.sha256(repr(wheels).encode()).hexdigest()[:16]
    toolkit = store / f"cuda-{digest}"
    with exclusive(store / f"cuda-{digest}.lock"):
        if not toolkit.is_dir():
            stage = store / f"cuda-{digest}.part"
            shutil.rmtree(stage, ignore_errors=True)
            _download(wheels, stage / "wheels", console)
            _unpack(stage)
            stage.rename(toolkit)
    (nvcc,) = toolkit.glob("nvidia/*/bin/nvcc")
    return str(nvcc)


def _download(wheels: tuple[Wheel, ...], folder: Path, console: Console) -> None:
    folder.mkdir(parents=True)
    requirements = folder / "requirements.txt"
    lines = (f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n" for wheel in wheels)
    requirements.write_text("".join(lines), encoding="utf-8")
    with console.status(f"fetching {len(wheels)} wheels of CUDA, about 100 MB"):
        _pip("download", "--require-hashes", "--dest", str(folder), "--requirement", str(requirements))


def _unpack(stage: Path) -> None:
    for wheel in sorted((stage / "wheels").glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(stage)
    shutil.rmtree(stage / "wheels")
    for folder in PROGRAM_FOLDERS:
        for program in stage.glob(f"nvidia/*/{folder}/*"):
            if program.is_file():
                program.chmod(0o755)


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
