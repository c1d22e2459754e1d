"""One repository: branches and tags over an object store, changed only by whole commits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from .errors import HubError, bad_request, conflict, entry_not_found, revision_not_found
from .objects import COMMIT_ID, Commit, ObjectStore, TreeEntry, write_atomically

# What a folder looks like while a commit edits it: names to blob ids or to further folders.
Folder = dict[str, "str | Folder"]
Edit = Callable[[Folder], None]


@dataclass(frozen=True)
class PathInfo:
    """A file or folder of a commit, as the tree listing shows it."""

    path: str
    oid: str
    is_folder: bool
    size: int

    def as_json(self) -> dict:
        kind = "directory" if self.is_folder else "file"
        return {"type": kind, "oid": self.oid, "size": self.size, "path": self.path}


class Repository:
    """A bare git repository in `folder`; git's own tools can read it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.objects = ObjectStore(folder / "objects")
        self._lock = threading.RLock()

    @property
    def exists(self) -> bool:
        return (self.folder / "HEAD").exists()

    def create(self) -> None:
        """Start the history as the Hub does: a branch `main` with one commit."""
        with self._lock:
            for part in ("objects", "refs/heads", "refs/tags"):
                (self.folder / part).mkdir(parents=True, exist_ok=True)
            blob = self.objects.write("blob", b"*.so filter=lfs diff=lfs merge=lfs -text\n")
            tree = self.objects.write_tree([TreeEntry(".gitattributes", blob, False)])
            first = Commit(tree, (), "initial commit", int(time.time()))
            self._write_ref("heads", "main", self.objects.write_commit(first))
            write_atomically(self.folder / "HEAD", b"ref: refs/heads/main\n")

    # Revisions

    def refs(self, kind: str) -> dict[str, str]:
        """Return the commit id of every branch (`kind="heads"`) or tag (`kind="tags"`)."""
        folder = self.folder / "refs" / kind
        return {unquote(path.name): path.read_text().strip() for path in sorted(folder.glob("[!.]*"))}

    def resolve(self, revision: str) -> str:
        """Return the commit id that a branch, a tag, a full ref name or a commit id stands for."""
        for kind in ("heads", "tags"):
            refs, prefix = self.refs(kind), f"refs/{kind}/"
            if commit := refs.get(revision) or refs.get(revision.removeprefix(prefix)):
                return commit
        try:
            self.objects.read(revision, "commit")
        except KeyError:
            raise revision_not_found(revision) from None
        return revision

    def create_ref(self, kind: str, name: str, revision: str) -> None:
        with self._lock:
            if COMMIT_ID.fullmatch(name) or name.startswith(("refs/", ".")):
                raise bad_request(f"Invalid reference name: {name!r}")
            if name in self.refs(kind):
                raise conflict(f"Reference already exists: {name!r}")
            self._write_ref(kind, name, self.resolve(revision))

    def delete_ref(self, kind: str, name: str) -> None:
        with self._lock:
            if kind == "heads" and name == "main":
                raise bad_request("The branch 'main' cannot be deleted")
            if name not in self.refs(kind):
                raise revision_not_found(name)
            self._ref_path(kind, name).unlink()

    # Content

    def info(self, commit: str, path: str) -> PathInfo:
        """Describe one file or folder of a commit; `""` is the root."""
        entry = TreeEntry("", self.objects.read_commit(commit).tree, True)
        for name in path.split("/") if path else ():
            names = (
                {child.name: child for child in self.objects.read_tree(entry.oid)} if entry.is_folder else {}
            )
            if name not in names:
                raise entry_not_found(path, commit)
            entry = names[name]
        return self._describe(path, entry)

    def read(self, commit: str, path: str) -> tuple[PathInfo, bytes]:
        """Return a file of a commit."""
        info = self.info(commit, path)
        if info.is_folder:
            raise entry_not_found(path, commit)
        return info, self.objects.read(info.oid, "blob")

    def walk(self, commit: str, path: str, recursive: bool) -> Iterator[PathInfo]:
        """Walk the content of a folder, folders before what is in them."""
        folder = self.info(commit, path)
        if not folder.is_folder:
            raise entry_not_found(path, commit)
        for entry in self.objects.read_tree(folder.oid):
            info = self._describe(f"{path}/{entry.name}" if path else entry.name, entry)
            yield info
            if recursive and info.is_folder:
                yield from self.walk(commit, info.path, recursive)

    def history(self, commit: str) -> Iterator[tuple[str, Commit]]:
        """Follow first parents back to the first commit."""
        oid: str | None = commit
        while oid:
            step = self.objects.read_commit(oid)
            yield oid, step
            oid = step.parents[0] if step.parents else None

    def commit(self, branch: str, message: str, edit: Edit, parent: str | None = None) -> str:
        """Apply `edit` to the head of `branch` as one commit, or not at all."""
        with self._lock:
            head = self.refs("heads").get(branch)
            if head is None:
                raise revision_not_found(branch)
            if parent is not None and parent != head:
                raise HubError(
                    412, None, f"A commit has happened since. {branch} is at {head}, not {parent}."
                )
            root = self._load(self.objects.read_commit(head).tree)
            edit(root)
            oid = self.objects.write_commit(Commit(self._save(root), (head,), message, int(time.time())))
            self._write_ref("heads", branch, oid)
            return oid

    # Inside

    def _describe(self, path: str, entry: TreeEntry) -> PathInfo:
        return PathInfo(
            path, entry.oid, entry.is_folder, 0 if entry.is_folder else self.objects.size(entry.oid)
        )

    def _load(self, tree: str) -> Folder:
        entries = self.objects.read_tree(tree)
        return {entry.name: self._load(entry.oid) if entry.is_folder else entry.oid for entry in entries}

    def _save(self, folder: Folder) -> str:
        entries = []
        for name, child in folder.items():
            if isinstance(child, str):
                entries.append(TreeEntry(name, child, False))
            elif child:  # git has no empty folders
                entries.append(TreeEntry(name, self._save(child), True))
        return self.objects.write_tree(entries)

    def _ref_path(self, kind: str, name: str) -> Path:
        return self.folder / "refs" / kind / quote(name, safe="")

    def _write_ref(self, kind: str, name: str, commit: str) -> None:
        write_atomically(self._ref_path(kind, name), f"{commit}\n".encode())
