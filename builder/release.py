"""What makes variants a release: one commit, its lock, all capabilities, and no API broken in a version."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from builder.api import broken, read_api
from builder.config import Repository
from builder.errors import BuilderError
from builder.lock import LOCK, read_lock
from builder.package import METADATA
from builder.source_state import changed_since, source_state
from builder.variants import complete_archs

TRIAL = "pass --trial for a trial repository"


def release_commit(repository: Repository, variants: Iterable[Path]) -> str:
    """The one commit that all variants were built from, whole and with its lock.

    Raises:
        BuilderError: they are no release; the message says what to do.
    """
    if source_state(repository).dirty:
        raise BuilderError(
            "The kernel's sources differ from the last commit, so nobody could tell what a binary was made "
            f"from. Commit, build and publish again, or {TRIAL}."
        )
    lock = read_lock(repository).sha256
    commits = {_commit(repository, folder, lock) for folder in variants}
    if len(commits) > 1:
        names = ", ".join(sorted(commit[:7] for commit in commits))
        raise BuilderError(
            f"The variants are of several commits: {names}. Build all of them again, or {TRIAL}."
        )
    return commits.pop()


def _commit(repository: Repository, folder: Path, lock: str) -> str:
    metadata = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    source = metadata["provenance"].get("kernel")
    if source is None or source["dirty"]:
        raise BuilderError(
            f"{folder.name} was built from sources that no commit holds. Build it again from the clean tree, "
            f"or {TRIAL}."
        )
    if changed := changed_since(repository, source["commit"]):
        raise BuilderError(
            f"{folder.name} was built from {source['commit'][:7]}, and {changed[0]} has changed since. Build "
            f"it again, or {TRIAL}."
        )
    if metadata["provenance"].get("toolchain-lock", {}).get("digest") != lock:
        raise BuilderError(
            f"{folder.name} was not built with the tools of {LOCK}, so nobody could build it again. Build it "
            f"with `python -m builder build --locked --variant {folder.name}`, or {TRIAL}."
        )
    archs = set(metadata["backend"].get("archs", ()))
    missing = sorted(complete_archs(repository, folder.name) - archs)
    if missing:
        raise BuilderError(
            f"{folder.name} is not compiled for {', '.join(missing)}, which build.toml lists. Build it "
            f"without --capability, or {TRIAL}."
        )
    return source["commit"]


def refuse_to_break(api: HfApi, repo: str, branch: str, folders: Iterable[Path]) -> None:
    """Compare with what the branch holds, if it holds anything.

    Raises:
        BuilderError: a variant would go, or what is called today would not work any more.
    """
    here = {folder.name: folder for folder in folders}
    there = _published_variants(api, repo, branch)
    if gone := sorted(there - here.keys()):
        raise BuilderError(
            f"{repo} {branch} has {gone[0]}, and build/ does not: it would be gone. Build it too, set "
            f"another version in build.toml, or {TRIAL}."
        )
    if not there:
        return
    name = min(there)
    with TemporaryDirectory() as folder:
        options = dict(repo_type="kernel", revision=branch, local_dir=folder)
        api.snapshot_download(repo, allow_patterns=f"build/{name}/*.py", **options)
        changes = list(broken(read_api(Path(folder) / "build" / name), read_api(here[name])))
    if changes:
        raise BuilderError(
            f"What works with {repo} {branch} would not work any more: {'; '.join(changes)}. Set another "
            f"version in build.toml and build again, or {TRIAL}."
        )


def _published_variants(api: HfApi, repo: str, branch: str) -> set[str]:
    try:
        # Asked first, for it fails at once where listing files would try again for half a minute.
        branches = {ref.name for ref in api.list_repo_refs(repo, repo_type="kernel").branches}
    except RepositoryNotFoundError:
        return set()
    if branch not in branches:
        return set()
    files = api.list_repo_files(repo, repo_type="kernel", revision=branch)
    return {name.split("/")[1] for name in files if name.startswith("build/") and name.count("/") > 1}
