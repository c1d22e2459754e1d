"""Readers of files that others wrote, to be fuzzed: only the documented error may come out, no path outside.

A reader is given the bytes of a file. It returns what was read, or None where that was refused as it should
be; whatever else is raised is a finding.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import tomllib

from tests.fuzz.edits import as_json, as_toml, edited

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Target:
    """One reader, the module whose branches guide the search, and good files to edit."""

    read: Callable[[bytes], object]
    module: str
    seeds: Callable[[], list[dict]]
    write: Callable[[dict], bytes]

    def run(self, data: bytes) -> object:
        """Read a file made of the fuzzer's bytes: one time in eight these themselves, else an edited seed."""
        if data[:1] and data[0] % 8 == 0:
            return self.read(data[1:])
        return self.read(self.write(edited(_seeds(self), data[1:])))


@cache
def _seeds(target: Target) -> list[dict]:
    return target.seeds()


@cache
def folder() -> Path:
    """A folder of this process, for readers of files."""
    return Path(tempfile.mkdtemp(prefix="flash-rwkv-fuzz-"))


def inside(root: Path, name: str) -> bool:
    """Whether a name stays below the folder it is joined to, as the system resolves it."""
    path = (root / name).resolve()
    return path != root.resolve() and path.is_relative_to(root.resolve())


def lock(data: bytes) -> object:
    """The pip package reading a lock: LoaderError; files below their variant; the same when written again."""
    from flash_rwkv.errors import LoaderError
    from flash_rwkv.lockfile import Lock

    path = folder() / "lock.json"
    path.write_bytes(data)
    try:
        read = Lock.read(path)
    except LoaderError:
        return None
    for variant, files in read.variants.items():
        assert inside(folder(), variant), f"variant {variant!r} leads outside"
        for name in files:
            assert inside(folder() / variant, name), f"file {name!r} leads outside"
    path.write_text(read.dumps(), encoding="utf-8")
    assert Lock.read(path).dumps() == read.dumps()
    return read


def digests(data: bytes) -> object:
    """The pip package reading what a commit says of itself: IntegrityError, and files below their variant."""
    from flash_rwkv.errors import IntegrityError
    from flash_rwkv.hub import own_digests

    try:
        read = own_digests(
            "torch-universal", data, {"__init__.py": 1, "plain/wkv4.py": 2, "metadata.json": 3}
        )
    except IntegrityError:
        return None
    for name in read:
        assert inside(folder(), name), f"file {name!r} leads outside"
    return read


def claim(data: bytes) -> object:
    """What `verify` reads in a published metadata.json: BuilderError, and nothing but a full commit."""
    from builder.errors import BuilderError
    from builder.verify import COMMIT, _read_claim

    (folder() / "metadata.json").write_bytes(data)
    try:
        read = _read_claim(folder())
    except BuilderError:
        return None
    assert COMMIT.fullmatch(read.commit), f"commit {read.commit!r}"
    return read


def check(data: bytes) -> object:
    """`builder check` of a variant with that metadata.json: findings, never an exception."""
    from builder.check import check_variant

    variant = folder() / "torch-universal"
    variant.mkdir(exist_ok=True)
    (variant / "metadata.json").write_bytes(data)
    return list(check_variant(variant, "flash_rwkv"))


def build(data: bytes) -> object:
    """`builder.config.open_repository`: BuilderError, and sources inside the repository."""
    from builder.config import open_repository
    from builder.errors import BuilderError

    repository = folder() / "repository"
    repository.mkdir(exist_ok=True)
    (repository / "build.toml").write_bytes(data)
    try:
        read = open_repository(repository)
    except BuilderError:
        return None
    for section in read.sections:
        for source in section.sources:
            assert inside(repository, source), f"source {source!r} leads outside"
    assert inside(repository / "torch-ext", read.python_name), f"name {read.name!r} leads outside"
    return read


def _lock_files() -> list[dict]:
    entry = {"sha256": "0123456789abcdef" * 4, "size": 10}
    pinned = {"schema": 1, "repository": "flash-rwkv/flash-rwkv", "revision": "a" * 40, "version": 1}
    variants = {"torch-universal": {"ops.py": entry, "plain/wkv4.py": entry}, "torch-cpu": {}}
    unpublished = {**pinned, "revision": None, "version": None, "variants": {}}
    return [{**pinned, "variants": variants}, unpublished]


def _metadata() -> list[dict]:
    """Of a CUDA variant, and of one without anything that may be left out."""
    digest = base64.b64encode(bytes(32)).decode()
    least = {
        "name": "flash-rwkv",
        "id": "_flash_rwkv_universal_0a1b2c3",
        "version": 1,
        "license": "MIT",
        "python-depends": [],
        "backend": {"type": "cpu"},
        "provenance": {"kernel-builder": {"version": "1"}, "kernel": {"commit": "a" * 40, "dirty": False}},
    }
    full = {
        **least,
        "backend": {"type": "cuda", "archs": ["9.0", "8.0"]},
        "digest": {"algorithm": "sha256", "files": {"__init__.py": digest, "plain/wkv4.py": digest}},
        "toolchain": {"compiler": "g++", "nvcc": "13.0"},
    }
    return [full, least]


def _build_files() -> list[dict]:
    short = {
        "general": {"name": "ab", "edition": 5, "version": 1, "license": "MIT", "backends": ["cpu"]},
        "torch": {"src": ["torch-ext/a.cpp"], "stable-abi": "2.11"},
        "kernel": {"a": {"backend": "cpu", "src": ["a.cpp"], "depends": ["torch"]}},
    }
    return [tomllib.loads((ROOT / "build.toml").read_text(encoding="utf-8")), short]


TARGETS = {
    "lock": Target(lock, "flash_rwkv.lockfile", _lock_files, as_json),
    "digests": Target(digests, "flash_rwkv.hub", _metadata, as_json),
    "claim": Target(claim, "builder.verify", _metadata, as_json),
    "check": Target(check, "builder.check", _metadata, as_json),
    "build": Target(build, "builder.config", _build_files, as_toml),
}
