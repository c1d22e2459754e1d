"""Rebuilds published variants from the commit they name, and compares every file.

What was published is only read. What runs is the commit in the checkout here: its builder, on its sources.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError
from rich.console import Console

from builder.check import variant_folders
from builder.config import Repository, open_repository
from builder.differences import FilePair, compare_variants
from builder.errors import BuilderError
from builder.package import METADATA
from builder.rebuild import Circumstances, Recipe, clone, rebuild
from builder.variants import complete_archs

ADDRESS = re.compile(r"(https?://[^/]+)(?:/kernels)?/([\w.-]+/[\w.-]+)/tree/([\w./-]+)")
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Claim:
    """What a variant's metadata says it was made of."""

    commit: str
    archs: tuple[str, ...]
    locked: bool


def fetch_published(where: str, repository: Repository, wanted: tuple[str, ...]) -> list[Path]:
    """Folders of the variants under a folder or at an address such as `https://HUB/kernels/OWNER/NAME/tree/v1`.

    Raises:
        BuilderError: it is neither, the Hub does not give it, or a wanted variant is not there.
    """
    folder = Path(where)
    if not folder.is_dir():
        folder = _download(where, repository.root / ".build" / "verify" / "published") / "build"
    return variant_folders(folder, wanted, where)


def verify(repository: Repository, published: Path, console: Console) -> list[FilePair]:
    """Build what a variant's metadata names, and compare; the clone stays when something differs.

    Raises:
        BuilderError: the metadata names no commit, or the commit is not here or does not build.
    """
    claim = _read_claim(published)
    place = repository.root / ".build" / "verify" / published.name
    clone(repository.root, claim.commit, place)
    archs = () if set(claim.archs) == complete_archs(open_repository(place), published.name) else claim.archs
    rebuilt = rebuild(
        Recipe(claim.commit, published.name, archs, claim.locked), Circumstances(place), console
    )
    pairs = compare_variants(published, rebuilt)
    if all(pair.same for pair in pairs):
        shutil.rmtree(place)
    return pairs


def _read_claim(published: Path) -> Claim:
    path = published / METADATA
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        provenance = content["provenance"]
        source, backend = provenance["kernel"], content["backend"]
        commit, archs = str(source["commit"]), tuple(map(str, backend.get("archs", ())))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BuilderError(f"{path} names no commit to build again ({error!r}).") from error
    if source.get("dirty") or not COMMIT.fullmatch(commit):
        raise BuilderError(
            f"{path}: it was built from sources that no commit holds, so nobody can build it again."
        )
    return Claim(commit, archs, "toolchain-lock" in provenance)


def _download(where: str, folder: Path) -> Path:
    match = ADDRESS.fullmatch(where.rstrip("/"))
    if match is None:
        raise BuilderError(
            f"{where} is neither a folder nor an address of the form https://HUB/kernels/OWNER/NAME/tree/REVISION."
        )
    endpoint, repo, revision = match.groups()
    shutil.rmtree(folder, ignore_errors=True)
    try:
        HfApi(endpoint=endpoint).snapshot_download(
            repo, repo_type="kernel", revision=revision, allow_patterns="build/*", local_dir=folder
        )
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise BuilderError(f"{endpoint} has no kernel {repo} with revision {revision}.") from error
    except (HfHubHTTPError, HTTPError) as error:
        raise BuilderError(
            f"{endpoint} does not give {repo}: {error}. Check the network and the address."
        ) from error
    return folder
