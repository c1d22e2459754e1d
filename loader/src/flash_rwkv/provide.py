"""From a plan to verified files: the store, then the Hugging Face cache, then the Hub."""

from __future__ import annotations

import atexit
import logging
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

from . import hub
from .errors import IntegrityError
from .lockfile import Lock
from .store import Store, default_store

_log = logging.getLogger("flash_rwkv")


def provide(lock: Lock, variant: str, *, store: Store | None = None, repair: bool = False) -> Path:
    """Return a folder with the verified files of a variant, from the nearest place that has them.

    Args:
        store: where the verified copy goes; by default this user's, or a temporary one if that is read-only.
        repair: replace files that fail verification with fresh ones from the Hub, instead of refusing.
    """
    files, home = lock.variants[variant], store or default_store()
    if home.has(variant, files):
        try:
            return home.verified(variant, files)
        except IntegrityError:
            if not repair:
                raise
            home.discard(variant, files)
    try:
        return _add(home, lock, variant, _sources(lock, variant), temporary=store is None)
    except IntegrityError:
        if not repair:
            raise
        return _add(home, lock, variant, _sources(lock, variant, fresh=True), temporary=store is None)


def whereabouts(lock: Lock, variant: str) -> str:
    """Say where `provide` would find a variant now, without asking the network."""
    files, home = lock.variants[variant], default_store()
    if home.has(variant, files):
        return f"verified copy in {home.folder(variant, files)}"
    found = hub.cached(lock.repository, lock.commit, variant, files)
    if len(found) == len(files):
        return f"Hugging Face cache, {found['metadata.json'].parent}"
    size = sum(entry.size for name, entry in files.items() if name not in found)
    count = f"{len(files) - len(found)} of {len(files)} files"
    return f"the Hub, {hub.endpoint()}: {count} to download, {size:,} bytes"


def _sources(lock: Lock, variant: str, fresh: bool = False) -> dict[str, Path]:
    files = lock.variants[variant]
    found = {} if fresh else hub.cached(lock.repository, lock.commit, variant, files)
    if missing := {name: entry.size for name, entry in files.items() if name not in found}:
        hub.resolve(lock.repository, lock.commit)
        found |= hub.download(lock.repository, lock.commit, variant, missing, force=fresh)
    return found


def _add(store: Store, lock: Lock, variant: str, sources: dict[str, Path], temporary: bool) -> Path:
    try:
        return store.add(variant, lock.variants[variant], sources)
    except OSError as error:
        if not temporary:
            raise
        _log.warning("cannot write to %s (%s): using a temporary copy for this process", store.root, error)
        return _temporary_store().add(variant, lock.variants[variant], sources)


@lru_cache(maxsize=1)
def _temporary_store() -> Store:
    folder = tempfile.mkdtemp(prefix="flash-rwkv-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Store(Path(folder))
