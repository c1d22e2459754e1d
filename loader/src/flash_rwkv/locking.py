"""Draws up a lock for a release: every file of every variant, fetched afresh from the Hub and hashed."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from . import hub
from .errors import IntegrityError, LoaderError
from .lockfile import Files, Lock


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
            variants[variant], metadata = _fetch(repository, commit, variant, sizes, Path(folder))
            _check_own_digests(variant, variants[variant], hub.own_digests(variant, metadata, sizes))
            versions.add(json.loads(metadata).get("version"))
    if len(versions) != 1:
        found = f"versions {sorted(versions, key=str)}" if versions else "no build variants"
        raise LoaderError(
            f"cannot lock {repository} at {commit}: expected variants of one version, found {found}"
        )
    return Lock(repository, commit, versions.pop(), variants, f"a fresh download of {repository}")


def _fetch(
    repository: str, commit: str, variant: str, sizes: dict[str, int], folder: Path
) -> tuple[Files, bytes]:
    """Return the digests of a variant's files as the Hub sends them, and the content of its metadata.json."""
    files, metadata = {}, b""
    with hub.progress(f"Fetching {variant}", sum(sizes.values())) as advance:
        for name, size in sizes.items():
            target = folder / "file"
            files[name] = hub.download(repository, commit, variant, name, size, target, advance)
            metadata = target.read_bytes() if name == "metadata.json" else metadata
    return files, metadata


def _check_own_digests(variant: str, files: Files, published: Files) -> None:
    for name, expected in published.items():
        if files[name] != expected:
            raise IntegrityError(
                f"{variant}/{name}: metadata.json says {expected}, the Hub sent {files[name]}"
            )
