"""The newline-delimited JSON of a commit request, turned into an edit of the tree."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass

from .errors import HubError, bad_request
from .objects import ObjectStore
from .repository import Folder


@dataclass(frozen=True)
class CommitRequest:
    """A commit as the client asks for it: a message, the expected parent and what to change."""

    message: str
    parent: str | None
    operations: list[tuple[str, dict]]

    @classmethod
    def parse(cls, body: bytes) -> CommitRequest:
        try:
            items = [json.loads(line) for line in body.splitlines() if line.strip()]
            header, *rest = [(item["key"], item["value"]) for item in items]
            summary = header[1]["summary"]
        except (ValueError, KeyError, TypeError, IndexError):
            raise bad_request(
                "The commit payload must be JSON lines, a header with a summary first"
            ) from None
        if header[0] != "header":
            raise bad_request(f"The first line of a commit must be its header, got {header[0]!r}")
        message = "\n\n".join(part for part in (summary, header[1].get("description")) if part)
        return cls(message, header[1].get("parentCommit"), rest)

    def apply(self, root: Folder, objects: ObjectStore) -> None:
        """Make the changes in `root`, storing new files in `objects`."""
        for key, value in self.operations:
            path = value.get("path", "")
            if key == "file":
                _put(root, path, objects.write("blob", _content(value)))
            elif key in ("deletedFile", "deletedFolder"):
                _delete(root, path.rstrip("/"))
            else:
                raise bad_request(f"Unsupported operation {key!r}: this Hub keeps every file in git itself")


def split_path(path: str) -> list[str]:
    """Split a path in the repository, refusing whatever could leave it."""
    names = path.split("/")
    if any(name in ("", ".", "..", ".git") or "\0" in name or "\\" in name for name in names):
        raise bad_request(f"Invalid path in repository: {path!r}")
    return names


def _content(value: dict) -> bytes:
    if value.get("encoding") != "base64":
        return value["content"].encode()
    try:
        return base64.b64decode(value["content"], validate=True)
    except binascii.Error as error:
        raise bad_request(f"Invalid base64 content of {value.get('path')!r}: {error}") from None


def _put(root: Folder, path: str, blob: str) -> None:
    *folders, name = split_path(path)
    for folder in folders:
        child = root.setdefault(folder, {})
        if isinstance(child, str):
            raise bad_request(f"{path!r} needs {folder!r} to be a folder, it is a file")
        root = child
    root[name] = blob


def _delete(root: Folder, path: str) -> None:
    *folders, name = split_path(path)
    for folder in folders:
        child = root.get(folder)
        root = child if isinstance(child, dict) else {}
    if root.pop(name, None) is None:
        raise HubError(404, "EntryNotFound", f"A file with this name doesn't exist: {path}")
