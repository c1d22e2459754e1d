"""The store: verified copies of build variants, private to this user, named by their content.

Files are hashed while they are copied here, and kernels are imported from here and nowhere else. What was
checked is therefore what runs, even when the cache it came from is shared or changes a moment later.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from .errors import IntegrityError
from .lockfile import FileEntry, Files, file_entry, table_digest


def default_root() -> Path:
    """Return FLASH_RWKV_CACHE, else `flash-rwkv` in the user's cache folder."""
    if chosen := os.environ.get("FLASH_RWKV_CACHE"):
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flash-rwkv"


def default_store() -> Store:
    return Store(default_root())


class Store:
    """A folder of variants: `<root>/<digest of the table of files>/<variant>/`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, variant: str, files: Files) -> Path:
        return self.root / table_digest(variant, files)[:32] / variant

    def has(self, variant: str, files: Files) -> bool:
        return self.folder(variant, files).is_dir()

    def verified(self, variant: str, files: Files) -> Path:
        """Return the folder of a stored variant after hashing every file in it again."""
        folder = self.folder(variant, files)
        advice = f"delete {folder.parent} or run `flash-rwkv prefetch`"
        _remove_bytecode(folder)
        found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
        if extra := sorted(found.keys() - files.keys()):
            raise IntegrityError(f"{found[extra[0]]} is not in the lock. Nothing was loaded: {advice}")
        for path, expected in files.items():
            if path not in found:
                raise IntegrityError(f"{folder / path} is missing, expected {expected}: {advice}")
            _compare(found[path], expected, file_entry(found[path]), advice)
        return folder

    def add(self, variant: str, files: Files, sources: dict[str, Path]) -> Path:
        """Copy a variant in, checking each file on the way, and return its folder.

        The copy appears all at once. Of two processes that add the same variant the first one wins.

        Raises:
            IntegrityError: a source differs from its digest; nothing is kept.
            OSError: the store cannot be written.
        """
        folder = self.folder(variant, files)
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        incoming = Path(tempfile.mkdtemp(dir=self.root, prefix=".incoming-"))
        try:
            for path, expected in files.items():
                target = incoming / variant / path
                target.parent.mkdir(parents=True, exist_ok=True)
                advice = "run `flash-rwkv prefetch` to download it again, or delete it"
                _compare(sources[path], expected, file_entry(sources[path], target), advice)
            if not folder.exists():
                _move(incoming, folder.parent)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
        return self.verified(variant, files)

    def discard(self, variant: str, files: Files) -> None:
        shutil.rmtree(self.folder(variant, files).parent)

    def write_text(self, name: str, text: str) -> None:
        """Keep a small file in the root, replacing it in one step."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self.root, prefix=".incoming-")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, self.root / name)


def _compare(path: Path, expected: FileEntry, got: FileEntry, advice: str) -> None:
    if got != expected:
        raise IntegrityError(
            f"{path} is not the file that was pinned: expected {expected}; got {got}. "
            f"Nothing was loaded: {advice}"
        )


def _move(incoming: Path, target: Path) -> None:
    try:
        incoming.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def _remove_bytecode(folder: Path) -> None:
    """Drop compiled Python, which would run instead of the verified source."""
    for cache in folder.rglob("__pycache__"):
        try:
            shutil.rmtree(cache)
        except OSError as error:
            raise IntegrityError(f"cannot remove unverified bytecode {cache}: {error.strerror}") from None
