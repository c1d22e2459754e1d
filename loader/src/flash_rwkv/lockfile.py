"""The lock: one commit of one repository, with size and SHA-256 of every file of every build variant.

A lock whose `revision` is null is unpublished: it names the repository and nothing that could be loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from .errors import LoaderError, NotPinnedError

SCHEMA = 1
SHIPPED = Path(__file__).with_name("flash_rwkv.lock.json")
COMMIT = re.compile(r"[0-9a-f]{40}")
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1 << 20
_NAME = re.compile(r"[\w+-][\w.+-]*", re.ASCII)
_DEVICE = re.compile(r"con|prn|aux|nul|(com|lpt)[0-9]", re.IGNORECASE)


@dataclass(frozen=True)
class FileEntry:
    """What a file must be: `sha256` in hexadecimal, `size` in bytes."""

    sha256: str
    size: int

    def __str__(self) -> str:
        return f"sha256 {self.sha256}, {self.size} bytes"


# Paths in a variant's folder, with forward slashes. Empty: a variant that publishes no digests.
Files = dict[str, FileEntry]


@dataclass(frozen=True)
class Lock:
    """A pinned commit; `origin` says where the lock itself came from."""

    repository: str
    revision: str | None
    version: int | None
    variants: dict[str, Files]
    origin: str

    @classmethod
    def current(cls) -> Lock:
        """Read the lock in force: the file named by FLASH_RWKV_LOCK, else the one shipped here."""
        return cls.read(Path(os.environ.get("FLASH_RWKV_LOCK") or SHIPPED))

    @classmethod
    def read(cls, path: Path) -> Lock:
        try:
            return _parse(json.loads(path.read_text(encoding="utf-8")), str(path))
        except OSError as error:
            raise LoaderError(f"cannot read the lock file {path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise LoaderError(f"{path} is not a lock file of schema {SCHEMA}: {error}") from None

    def dumps(self) -> str:
        """Return the file's text, the same for the same content."""
        variants = {
            name: {
                path: {"sha256": entry.sha256, "size": entry.size} for path, entry in sorted(files.items())
            }
            for name, files in sorted(self.variants.items())
        }
        head = {"repository": self.repository, "revision": self.revision, "version": self.version}
        return json.dumps({"schema": SCHEMA, **head, "variants": variants}, indent=2) + "\n"

    @property
    def commit(self) -> str:
        """The pinned commit; `NotPinnedError` when the lock is unpublished."""
        if self.revision is None:
            raise NotPinnedError(
                f"this build of the flash-rwkv loader has no pinned release: {self.origin} names no commit. "
                "Run `flash-rwkv lock REPO --revision SHA -o FILE` and set FLASH_RWKV_LOCK=FILE, "
                "or set FLASH_RWKV_LOCAL to a folder with a build"
            )
        return self.revision


def file_entry(path: Path, copy: Path | None = None) -> FileEntry:
    """Hash a file; with `copy`, write the very bytes that were hashed there."""
    hasher, size = hashlib.sha256(), 0
    with path.open("rb") as source, open(copy or os.devnull, "wb") as target:
        while chunk := source.read(_CHUNK):
            hasher.update(chunk)
            target.write(chunk)
            size += len(chunk)
    return FileEntry(hasher.hexdigest(), size)


def table_digest(variant: str, files: Files) -> str:
    """Return one name for a variant and all its content."""
    table = [variant, sorted((path, entry.sha256, entry.size) for path, entry in files.items())]
    return hashlib.sha256(json.dumps(table).encode()).hexdigest()


def safe_path(path: str) -> str:
    """Return `path` if on every system it can only name a source or library file below a variant's folder."""
    parts = path.lower().split("/")
    if not all(_allowed(part) for part in parts) or "__pycache__" in parts or parts[-1].endswith(".pyc"):
        raise ValueError(f"file name {path!r} is not allowed in a build variant")
    return path


def safe_name(variant: str) -> str:
    """Return `variant` if it can be the name of a folder, on every system."""
    if not _allowed(variant):
        raise ValueError(f"variant name {variant!r} is not allowed")
    return variant


def _allowed(name: str) -> bool:
    """Windows drops dots at the end of a name, and some names are devices there, whatever follows a dot."""
    return bool(_NAME.fullmatch(name)) and name[-1] != "." and not _DEVICE.fullmatch(name.partition(".")[0])


def _parse(value: dict, origin: str) -> Lock:
    if value["schema"] != SCHEMA:
        raise ValueError(f"its schema is {value['schema']!r}")
    repository, revision, version = value["repository"], value["revision"], value["version"]
    if not REPOSITORY.fullmatch(repository):
        raise ValueError(f"repository must be 'owner/name', got {repository!r}")
    if revision is not None and not COMMIT.fullmatch(revision):
        raise ValueError(f"revision must be a full commit sha or null, got {revision!r}")
    if version is not None and not isinstance(version, int):
        raise ValueError(f"version must be a number or null, got {version!r}")
    variants = {name: _parse_files(name, files) for name, files in value["variants"].items()}
    return Lock(repository, revision, version, variants, origin)


def _parse_files(variant: str, files: dict) -> Files:
    safe_name(variant)
    if len({path.lower() for path in files}) < len(files):
        raise ValueError(f"{variant} has files whose names differ in case alone")
    return {safe_path(path): _parse_entry(path, entry) for path, entry in files.items()}


def _parse_entry(path: str, entry: dict) -> FileEntry:
    sha256, size = entry["sha256"], entry["size"]
    if not _SHA256.fullmatch(sha256) or not isinstance(size, int):
        raise ValueError(f"the entry of {path} needs a sha256 of 64 hexadecimal digits and a size")
    return FileEntry(sha256, size)
