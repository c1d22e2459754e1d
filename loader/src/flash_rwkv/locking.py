"""Draws up a lock for a release: every file of every variant, fetched afresh from the Hub and hashed."""

from __future__ import annotations

import json
import tempfile

from . import hub
from .errors import IntegrityError, LoaderError
from .lockfile import Files, Lock, file_entry, safe_path


def pin(repository: str, revision: str) -> Lock:
    """Download what `revision` stands for now and return a lock of its content.

    Raises:
        UnavailableError: the Hub cannot be reached or does not have it.
        IntegrityError: a variant is not what its own `metadata.json` says.
        LoaderError: there are no variants, or they are of different versions.
    """
    commit = hub.resolve(repository, revision)
    variants, versions = {}, set()
    with tempfile.TemporaryDirectory(prefix="flash-rwkv-lock-") as folder:
        for variant, sizes in hub.tree(repository, commit).items():
            paths = hub.download(repository, commit, variant, sizes, cache_dir=folder)
            variants[variant] = {safe_path(name): file_entry(path) for name, path in paths.items()}
            _check_own_digests(variant, variants[variant], hub.own_digests(paths["metadata.json"], sizes))
            versions.add(json.loads(paths["metadata.json"].read_bytes()).get("version"))
    if len(versions) != 1:
        found = f"versions {sorted(versions, key=str)}" if versions else "no build variants"
        raise LoaderError(
            f"cannot lock {repository} at {commit}: expected variants of one version, found {found}"
        )
    return Lock(repository, commit, versions.pop(), variants, f"a fresh download of {repository}")


def _check_own_digests(variant: str, files: Files, published: Files) -> None:
    for name, expected in published.items():
        if files[name] != expected:
            raise IntegrityError(
                f"{variant}/{name}: metadata.json says {expected}, the Hub sent {files[name]}"
            )
