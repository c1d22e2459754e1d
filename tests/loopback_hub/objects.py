"""A content-addressed object store in git's own loose-object format.

Blobs, trees and commits are named by the SHA-1 of their content, so that commit ids are real and `git log` or
`git fsck` can look at what clients published. Nothing here knows of branches or of HTTP.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

COMMIT_ID = re.compile(r"[0-9a-f]{40}")
_FILE_MODE, _FOLDER_MODE = "100644", "40000"


@dataclass(frozen=True)
class TreeEntry:
    """One name in a tree: a file (blob) or a folder (another tree)."""

    name: str
    oid: str
    is_folder: bool


@dataclass(frozen=True)
class Commit:
    """A snapshot of the whole repository with the commits it follows."""

    tree: str
    parents: tuple[str, ...]
    message: str
    time: int


class ObjectStore:
    """Immutable objects under `folder`, one zlib file each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, kind: str, body: bytes) -> str:
        """Store an object once and return its id."""
        content = f"{kind} {len(body)}\0".encode() + body
        oid = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        path = self._path(oid)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, zlib.compress(content, level=1))
        return oid

    def read(self, oid: str, kind: str) -> bytes:
        """Return the body of the object `oid`; `KeyError` when there is none of that kind."""
        try:
            header, _, body = zlib.decompress(self._path(oid).read_bytes()).partition(b"\0")
        except FileNotFoundError:
            raise KeyError(oid) from None
        if not header.startswith(kind.encode() + b" "):
            raise KeyError(oid)
        return body

    def size(self, oid: str) -> int:
        """Return the body's length, reading no more than the object's header."""
        with self._path(oid).open("rb") as file:
            header = zlib.decompressobj().decompress(file.read(1024), 32)
        return int(header.partition(b"\0")[0].split()[1])

    def write_tree(self, entries: list[TreeEntry]) -> str:
        """Store a folder; git sorts folders as if their names ended in a slash."""
        body = b""
        for entry in sorted(entries, key=lambda entry: entry.name.encode() + b"/" * entry.is_folder):
            mode = _FOLDER_MODE if entry.is_folder else _FILE_MODE
            body += f"{mode} {entry.name}\0".encode() + bytes.fromhex(entry.oid)
        return self.write("tree", body)

    def read_tree(self, oid: str) -> list[TreeEntry]:
        body, entries = self.read(oid, "tree"), []
        while body:
            head, _, rest = body.partition(b"\0")
            mode, name = head.decode().split(" ", 1)
            entries.append(TreeEntry(name, rest[:20].hex(), mode == _FOLDER_MODE))
            body = rest[20:]
        return entries

    def write_commit(self, commit: Commit) -> str:
        person = f"loopback <loopback@localhost> {commit.time} +0000"
        lines = [f"tree {commit.tree}", *(f"parent {parent}" for parent in commit.parents)]
        lines += [f"author {person}", f"committer {person}", "", commit.message]
        return self.write("commit", ("\n".join(lines) + "\n").encode())

    def read_commit(self, oid: str) -> Commit:
        head, _, message = self.read(oid, "commit").decode().partition("\n\n")
        fields = [line.split(" ", 1) for line in head.splitlines()]
        values = dict(fields)
        parents = tuple(value for key, value in fields if key == "parent")
        return Commit(values["tree"], parents, message.rstrip("\n"), int(values["committer"].split()[-2]))

    def _path(self, oid: str) -> Path:
        if not COMMIT_ID.fullmatch(oid):
            raise KeyError(oid)
        return self.folder / oid[:2] / oid[2:]


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside `path` and rename, so that readers see the old file or the new one, never a part."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    os.replace(temporary, path)
