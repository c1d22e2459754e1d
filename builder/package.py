"""Assembles build/<variant>/ from the compiled module, if there is one, and the kernel's Python."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kernels._rust import Digest, DigestAlgorithm

from builder import __version__, templates
from builder.config import PLAIN, Repository
from builder.source_state import SourceState
from builder.variants import PlainVariant, Variant

METADATA = "metadata.json"
SIGNATURE = f"{METADATA}.sigstore"  # where kernels' `verify-signature` looks for it


@dataclass(frozen=True)
class Parts:
    """What a variant is put together from; without `module` its ops are the Python of `plain`."""

    repository: Repository
    variant: Variant | PlainVariant
    build_id: str
    work: Path  # .build/<variant>
    module: Path | None = None
    archs: Sequence[str] = ()  # CUDA capabilities that the module is compiled for
    toolchain: Mapping[str, str] = field(default_factory=dict)
    lock: str | None = None  # SHA-256 of the lock that the toolchain was held to


def package_variant(parts: Parts, state: SourceState) -> tuple[Path, bool]:
    """Make `build/<variant>/` hold exactly this build.

    The folder is put together aside and then swapped in, so that no reader sees half of it.

    Returns:
        The folder, and whether anything in it changed.
    """
    stage = parts.work / "stage"
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    _copy_python(parts, stage)
    if parts.module:
        shutil.copyfile(parts.module, stage / f"{parts.build_id}.abi3.so")
        (stage / f"{parts.build_id}.abi3.so").chmod(0o755)
    metadata = json.dumps(_metadata(parts, state, stage), indent=2) + "\n"
    (stage / METADATA).write_text(metadata, encoding="utf-8")

    target = parts.repository.root / "build" / parts.variant.name
    if _same(stage, target):
        return target, False
    target.parent.mkdir(parents=True, exist_ok=True)
    old = parts.work / "old"
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    stage.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return target, True


def _copy_python(parts: Parts, stage: Path) -> None:
    package = parts.repository.package
    for source in sorted(package.rglob("*.py")):
        target = stage / source.relative_to(package)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    names = {
        "build_id": parts.build_id,
        "python_name": parts.repository.python_name,
        "registers": parts.build_id if parts.module else PLAIN,
    }
    (stage / "_ops.py").write_text(templates.OPS_PY.format(**names), encoding="utf-8")
    shim = stage / parts.repository.python_name / "__init__.py"
    shim.parent.mkdir(exist_ok=True)
    shim.write_text(templates.IMPORT_SHIM_PY.format(**names), encoding="utf-8")


def _metadata(parts: Parts, state: SourceState, stage: Path) -> dict:
    """metadata.json in upstream's schema.

    `toolchain` and `toolchain-lock` are ours: its reader ignores keys that it does not know.
    """
    repository = parts.repository
    backend: dict = {"type": parts.variant.backend}
    if parts.archs:
        backend["archs"] = list(parts.archs)
    provenance: dict = {"kernel-builder": {"version": f"flash-rwkv-builder {__version__}"}}
    if state.commit:
        provenance["kernel"] = {"commit": state.commit, "dirty": state.dirty}
    if parts.lock:
        provenance["toolchain-lock"] = {"algorithm": "sha256", "digest": parts.lock}
    digest = Digest.hash_variant(DigestAlgorithm.SHA256, stage)
    return {
        "name": repository.name,
        "id": parts.build_id,
        "version": repository.version,
        "license": repository.license,
        "python-depends": list(repository.python_depends),
        "backend": backend,
        "digest": {"algorithm": str(digest.algorithm), "files": dict(sorted(digest.files.items()))},
        "provenance": provenance,
        "toolchain": dict(parts.toolchain),
    }


def _same(left: Path, right: Path) -> bool:
    """Whether two folders hold the same files; what Python caches beside them does not count.

    Neither does a signature: of the same files it stays right.
    """
    return right.is_dir() and _contents(left) == _contents(right)


def _contents(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files if p.name != SIGNATURE}
