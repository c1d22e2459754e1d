"""From a name to a plan: the lock or local folder it stands for, and the variant of it that fits here."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from . import hub
from .errors import IntegrityError, LoaderError
from .lockfile import COMMIT, REPOSITORY, Lock
from .store import default_store
from .variants import Decision, decide, preferred

SHORT_NAME = "flash-rwkv"
_log = logging.getLogger("flash_rwkv")


@dataclass(frozen=True)
class Plan:
    """What would be loaded.

    `lock` pins the files. Without one, `local` has the folders of a build that nothing vouches for.
    """

    repository: str
    lock: Lock | None
    local: dict[str, Path]
    decisions: list[Decision]

    @property
    def source(self) -> str:
        return (
            f"{self.repository} at {self.lock.commit}"
            if self.lock
            else f"FLASH_RWKV_LOCAL={_local_setting()}"
        )

    @property
    def variant(self) -> str:
        """The variant for this machine; `NoVariantError` with the reasons when there is none."""
        return preferred(self.decisions, self.source)


def make_plan(name: str, revision: str | None, version: int | None, backend: str | None) -> Plan:
    """Resolve the arguments of `get_kernel`.

    The network is asked only about a revision that no lock on this machine pins, and only the first time.
    """
    current = Lock.current()
    repository = current.repository if name == SHORT_NAME else name
    _check(repository, revision, version)
    if repository == current.repository and _local_setting():
        local = _local_variants(Path(_local_setting()).expanduser().absolute())
        return Plan(repository, None, local, _decide_local(local, backend))
    lock = _find_lock(current, repository, revision, version)
    return Plan(repository, lock, {}, decide(lock.variants, backend))


def pin_name(repository: str, revision: str) -> str:
    """Return the file in a store that remembers the digests of a revision that no lock pins."""
    return f"{repository.replace('/', '--')}@{revision}.lock.json"


def _check(repository: str, revision: str | None, version: int | None) -> None:
    if not isinstance(repository, str) or not REPOSITORY.fullmatch(repository):
        raise ValueError(f"name must be {SHORT_NAME!r} or a repository id 'owner/name', got {repository!r}")
    if revision is not None and version is not None:
        raise ValueError(
            f"give revision or version, not both, got revision={revision!r} and version={version!r}"
        )
    if revision is not None and not COMMIT.fullmatch(revision):
        raise ValueError(
            f"revision must be a full commit sha of 40 hexadecimal digits, got {revision!r}: branches and "
            f"tags can move. `flash-rwkv lock {repository} --revision {revision}` pins its present commit"
        )


def _find_lock(current: Lock, repository: str, revision: str | None, version: int | None) -> Lock:
    if repository == current.repository and revision in (None, current.revision):
        current.commit  # noqa: B018 - refuses an unpublished lock
        if version not in (None, current.version):
            raise ValueError(
                f"version {version} is not pinned, {current.origin} pins version {current.version}: run "
                f"`flash-rwkv lock {repository} --revision v{version} -o FILE` and set FLASH_RWKV_LOCK=FILE"
            )
        return current
    if revision is None:
        raise ValueError(
            f"{current.origin} pins {current.repository}, not {repository}: give revision= with a commit sha"
        )
    return _remembered(repository, revision)


def _remembered(repository: str, revision: str) -> Lock:
    """Return the digests of a revision as they were when it was first asked for here."""
    store = default_store()
    path = store.root / pin_name(repository, revision)
    if path.exists():
        lock = Lock.read(path)
        if (lock.repository, lock.revision) != (repository, revision):
            raise IntegrityError(f"{path} pins {lock.repository} at {lock.revision}: delete it")
        return lock
    lock = hub.describe(repository, revision)
    try:
        store.write_text(path.name, lock.dumps())
    except OSError as error:
        _log.warning("cannot remember the digests of %s in %s: %s", repository, path, error)
    return lock


def _local_setting() -> str:
    return os.environ.get("FLASH_RWKV_LOCAL", "")


def _local_variants(path: Path) -> dict[str, Path]:
    """Find builds in a repository's folder, in its `build/`, or the one variant that the path itself is."""
    for folders in ([path], sorted(path.glob("*/")), sorted(path.glob("build/*/"))):
        if found := {folder.name: folder for folder in folders if (folder / "metadata.json").is_file()}:
            return found
    raise LoaderError(
        f"FLASH_RWKV_LOCAL={path} has no build variant: expected a folder with metadata.json, or a folder of "
        "such folders, as `python -m builder build` makes"
    )


def _decide_local(local: dict[str, Path], backend: str | None) -> list[Decision]:
    if list(local.values()) == [Path(_local_setting()).expanduser().absolute()]:
        return [Decision(variant) for variant in local]  # named outright, whatever it is called
    return decide(local, backend)
