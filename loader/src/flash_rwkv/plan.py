"""From a name to a plan: the lock or local folder it stands for, and the variant of it that fits here."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from . import hub
from .bundle import Bundle, bundles, local_folder, lock_name
from .errors import IntegrityError, LoaderError
from .lockfile import COMMIT, REPOSITORY, Files, Lock
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
        local = f"FLASH_RWKV_LOCAL={local_folder()}"
        if self.lock is None:
            return local
        return f"{self.repository} at {self.lock.commit}" + (f" in {local}" if local_folder() else "")

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
    local = local_folder()
    if local and repository == current.repository and not Bundle(local).locks():
        builds = _local_builds(local)
        return Plan(repository, None, builds, _decide_local(local, builds, backend))
    lock = _find_lock(current, repository, revision, version)
    variants = _carried_variants(Bundle(local), lock) if local and Bundle(local).locks() else lock.variants
    return Plan(repository, lock, {}, decide(variants, backend))


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
    carried = [lock for bundle in bundles() for lock in bundle.locks() if lock.repository == repository]
    if repository == current.repository and revision in (None, current.revision):
        pinned = current if current.revision or not carried else _only(carried)
        pinned.commit  # noqa: B018 - refuses an unpublished lock
        if version not in (None, pinned.version):
            raise ValueError(
                f"version {version} is not pinned, {pinned.origin} pins version {pinned.version}: run "
                f"`flash-rwkv lock {repository} --revision v{version} -o FILE` and set FLASH_RWKV_LOCK=FILE"
            )
        return pinned
    if revision is None:
        raise ValueError(
            f"{current.origin} pins {current.repository}, not {repository}: give revision= with a commit sha"
        )
    return next((lock for lock in carried if lock.revision == revision), None) or _remembered(
        repository, revision
    )


def _only(locks: list[Lock]) -> Lock:
    """Return the lock that was carried here, where the package itself pins nothing."""
    if len({lock.revision for lock in locks}) > 1:
        raise LoaderError(
            f"several kernels were carried here, {', '.join(lock.origin for lock in locks)}: set "
            "FLASH_RWKV_LOCK to one of them, or give revision="
        )
    return locks[0]


def _carried_variants(bundle: Bundle, lock: Lock) -> dict[str, Files]:
    """Return the variants that the folder in FLASH_RWKV_LOCAL has, so that no other is asked of the Hub."""
    if variants := {name: files for name, files in lock.variants.items() if bundle.paths(name, files)}:
        return variants
    held = ", ".join(f"{other.repository} at {other.revision}" for other in bundle.locks())
    raise LoaderError(
        f"FLASH_RWKV_LOCAL={bundle.root} holds {held}, but {lock.repository} at {lock.commit} is asked for "
        f"(by {lock.origin}): fill it again, give revision=, or set FLASH_RWKV_LOCK to a lock in that folder"
    )


def _remembered(repository: str, revision: str) -> Lock:
    """Return the digests of a revision as they were when it was first asked for here."""
    store = default_store()
    path = store.root / lock_name(repository, revision)
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


def _local_builds(path: Path) -> dict[str, Path]:
    """Find builds in a repository's folder, in its `build/`, or the one variant that the path itself is."""
    for folders in ([path], sorted(path.glob("*/")), sorted(path.glob("build/*/"))):
        if found := {folder.name: folder for folder in folders if (folder / "metadata.json").is_file()}:
            return found
    raise LoaderError(
        f"FLASH_RWKV_LOCAL={path} has no build variant: expected what `flash-rwkv prefetch --to` wrote, or a "
        "folder with metadata.json, or a folder of such folders, as `python -m builder build` makes"
    )


def _decide_local(local: Path, builds: dict[str, Path], backend: str | None) -> list[Decision]:
    if list(builds.values()) == [local]:
        return [Decision(variant) for variant in builds]  # named outright, whatever it is called
    return decide(builds, backend)
