"""The store: verified copies of build variants, private to this user, named by their content.

Files are hashed while they are written here, and kernels are imported from here and nowhere else. What was
checked is therefore what runs, even when the place it came from is shared or changes a moment later.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .errors import IntegrityError, LoaderError
from .lockfile import FileEntry, Files, file_entry, table_digest

_DAY = 24 * 60 * 60
_INCOMING = ".incoming-"


def default_root() -> Path:
    """Return FLASH_RWKV_CACHE, else `flash-rwkv` in the user's cache folder."""
    if chosen := os.environ.get("FLASH_RWKV_CACHE"):
        return Path(chosen).expanduser().absolute()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flash-rwkv"
    except RuntimeError:  # a container's user without an entry in passwd
        raise LoaderError("this user has no home folder: set FLASH_RWKV_CACHE to another") from None


def default_store() -> Store:
    return Store(default_root())


@dataclass(frozen=True)
class Source:
    """Where a file comes from: `write` puts it at a path and returns the digest of what it wrote."""

    name: str
    write: Callable[[Path], FileEntry]

    @classmethod
    def of(cls, path: Path) -> Source:
        return cls(str(path), partial(file_entry, path))


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
        for path in (folder.parent, folder):
            _refuse_link(path, advice)
        _remove_bytecode(folder)
        found = {
            path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not _is_folder(path)
        }
        if extra := sorted(found.keys() - files.keys()):
            raise IntegrityError(f"{found[extra[0]]} is not in the lock. Nothing was loaded: {advice}")
        for path, expected in files.items():
            if path not in found:
                raise IntegrityError(f"{folder / path} is missing, expected {expected}: {advice}")
            _refuse_link(found[path], advice)
            _compare(str(found[path]), expected, file_entry(found[path]), advice)
        return folder

    def add(self, variant: str, files: Files, sources: dict[str, Source]) -> Path:
        """Write a variant, checking each file on the way, and return its folder.

        The copy appears all at once. Of two processes that add the same variant the first one wins.

        Raises:
            IntegrityError: a file differs from its digest; nothing is kept.
            UnavailableError: a source that is on the Hub cannot be had; nothing is kept.
            OSError: the store cannot be written; nothing is kept.
        """
        folder = self.folder(variant, files)
        with self._incoming() as incoming:

            def put(path: str) -> None:
                target = incoming / variant / path
                target.parent.mkdir(parents=True, exist_ok=True)
                advice = "run `flash-rwkv prefetch` to download it again, or delete it"
                _compare(sources[path].name, files[path], sources[path].write(target), advice)

            with ThreadPoolExecutor(max_workers=4) as pool:
                try:
                    for _ in pool.map(put, files):
                        pass
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
            if not folder.exists():
                _move(incoming, folder.parent)
        return self.verified(variant, files)

    def discard(self, variant: str, files: Files) -> None:
        parent = self.folder(variant, files).parent
        parent.unlink() if parent.is_symlink() else shutil.rmtree(parent)

    def write_text(self, name: str, text: str) -> None:
        """Keep a small file in the root, replacing it in one step."""
        with self._incoming() as incoming:
            (incoming / name).write_text(text, encoding="utf-8")
            os.replace(incoming / name, self.root / name)

    @contextmanager
    def _incoming(self) -> Iterator[Path]:
        """Make a folder for what is not complete yet, and remove what killed processes left of theirs."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        incoming = Path(tempfile.mkdtemp(dir=self.root, prefix=_INCOMING))
        try:
            now = incoming.stat().st_mtime  # the file system's clock, which a server may keep, not ours
            for other in self.root.glob(f"{_INCOMING}*"):
                if now - _written(other, now) > _DAY:
                    shutil.rmtree(other, ignore_errors=True)
            yield incoming
        finally:
            shutil.rmtree(incoming, ignore_errors=True)


def _compare(name: str, expected: FileEntry, got: FileEntry, advice: str) -> None:
    if got != expected:
        raise IntegrityError(
            f"{name} is not the file that was pinned: expected {expected}; got {got}. "
            f"Nothing was loaded: {advice}"
        )


def _is_folder(path: Path) -> bool:
    """A link to a folder is none: what it leads to would be imported and was not looked at."""
    return path.is_dir() and not path.is_symlink()


def _refuse_link(path: Path, advice: str) -> None:
    """Only files and folders of the store's own: a link could lead elsewhere a moment later, a pipe block."""
    if path.is_symlink() or not (path.is_file() or path.is_dir()):
        raise IntegrityError(f"{path} is a link or a device, not a file. Nothing was loaded: {advice}")


def _move(incoming: Path, target: Path) -> None:
    try:
        incoming.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def _written(path: Path, otherwise: float) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # its process has just finished
        return otherwise


def _remove_bytecode(folder: Path) -> None:
    """Drop compiled Python, which would run instead of the verified source."""
    for cache in folder.rglob("__pycache__"):
        try:
            shutil.rmtree(cache)
        except OSError as error:
            raise IntegrityError(f"cannot remove unverified bytecode {cache}: {error.strerror}") from None
