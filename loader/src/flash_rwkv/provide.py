"""From a plan to verified files: the store, what was carried here, the Hugging Face cache, the Hub."""

from __future__ import annotations

import atexit
import logging
import shutil
import tempfile
from functools import lru_cache, partial
from pathlib import Path

from . import hub
from .bundle import Bundle, bundles
from .errors import IntegrityError, LoaderError
from .lockfile import Lock
from .patience import Advance
from .signatures import Signer, check_signature
from .store import Source, Store, default_store

_log = logging.getLogger("flash_rwkv")


def provide(lock: Lock, variant: str, *, store: Store | None = None, repair: bool = False) -> Path:
    """Return a folder with the verified files of a variant, from the nearest place that has them.

    Args:
        store: where the verified copy goes; by default this user's, or a temporary one if that is read-only.
        repair: replace files that fail verification with fresh ones from the Hub, instead of refusing.

    Raises:
        IntegrityError: a file is not the one that was pinned, or FLASH_RWKV_SIGNER has not signed it.
    """
    folder = _provide(lock, variant, store, repair)
    if signer := Signer.required():
        check_signature(folder, variant, signer)
    return folder


def _provide(lock: Lock, variant: str, store: Store | None, repair: bool) -> Path:
    files, home = lock.variants[variant], store or default_store()
    if home.has(variant, files):
        try:
            return home.verified(variant, files)
        except IntegrityError:
            if not repair:
                raise
            home.discard(variant, files)
    near = nearby(lock, variant, home)
    try:
        return _add(home, lock, variant, near, temporary=store is None)
    except IntegrityError:
        if not (repair and near):
            raise
        return _add(home, lock, variant, {}, temporary=store is None)


def whereabouts(lock: Lock, variant: str) -> str:
    """Say where `provide` would find a variant now, without asking the network."""
    files, home = lock.variants[variant], default_store()
    if home.has(variant, files):
        return f"verified copy in {home.folder(variant, files)}"
    near = nearby(lock, variant, home)
    if len(near) == len(files):
        return f"{near['metadata.json'].parent}, to be verified"
    size = sum(entry.size for name, entry in files.items() if name not in near)
    count = f"{len(files) - len(near)} of {len(files)} files"
    return f"the Hub, {hub.endpoint()}: {count} to download, {size:,} bytes"


def nearby(lock: Lock, variant: str, store: Store) -> dict[str, Path]:
    """Return those files that this machine has outside of `store`, wherever; they are not verified yet."""
    files = lock.variants[variant]
    near = hub.cached(lock.repository, lock.commit, variant, files)
    for place in (*reversed(bundles()), Bundle(default_store().root)):  # the nearest last, so that it wins
        if place.root != store.root:
            near |= place.paths(variant, files)
    return near


def _add(store: Store, lock: Lock, variant: str, near: dict[str, Path], temporary: bool) -> Path:
    """Add a variant to `store`, its files from `near` and what is not there from the Hub."""
    files = lock.variants[variant]
    missing = sum(entry.size for name, entry in files.items() if name not in near)
    with hub.progress(f"Fetching {variant}", missing) as advance:
        sources = {name: _source(lock, variant, name, near, advance) for name in files}
        try:
            return store.add(variant, files, sources)
        except OSError as error:
            if not temporary:
                raise _no_room(store, lock, variant, error) from None
            _log.warning(
                "cannot write to %s (%s): using a temporary copy for this process", store.root, error
            )
        try:
            return _temporary_store().add(variant, files, sources)
        except OSError as error:
            raise _no_room(store, lock, variant, error) from None


def _source(lock: Lock, variant: str, name: str, near: dict[str, Path], advance: Advance) -> Source:
    if name in near:
        return Source.of(near[name])
    size = lock.variants[variant][name].size
    download = partial(hub.download, lock.repository, lock.commit, variant, name, size, advance=advance)
    return Source(f"{name} from {hub.endpoint()}", download)


def _no_room(store: Store, lock: Lock, variant: str, error: OSError) -> LoaderError:
    size = sum(entry.size for entry in lock.variants[variant].values())
    return LoaderError(
        f"cannot put {variant} into {store.root}: {error}. It takes {size:,} bytes: make room, or set "
        "FLASH_RWKV_CACHE to a folder of yours that has it"
    )


@lru_cache(maxsize=1)
def _temporary_store() -> Store:
    folder = tempfile.mkdtemp(prefix="flash-rwkv-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Store(Path(folder))
