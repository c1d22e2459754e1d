"""Uploads build/ to a Hub repository of type `kernel`: branch vN gets the variants, main gets the card."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from kernels._rust import Metadata

from builder.abi import can_check_abi
from builder.check import check_variants
from builder.config import Repository
from builder.errors import BuilderError
from builder.package import METADATA
from builder.source_state import changed_since, source_state

CARD = "CARD.md"
REPO_TYPE = "kernel"


@dataclass(frozen=True)
class Upload:
    """What goes where, decided before anything is sent."""

    repo: str
    branch: str
    variants: dict[str, Metadata]
    files: dict[str, Path]  # path in the repository -> file here
    card: Path


def prepare_upload(repository: Repository, repo: str, version: int, allow_dirty: bool) -> Upload:
    """Decide what to upload, refusing what should not be.

    Raises:
        BuilderError: a finding of the checks, or one that cannot be made here; a tree or variant that no
            commit describes, another version than the variants', or no card.
    """
    build, card = repository.root / "build", repository.root / CARD
    if not card.is_file():
        raise BuilderError(f"{card} does not exist. It becomes the README of the Hub repository.")
    if not can_check_abi():
        raise BuilderError("The ABI cannot be checked here: `pip install kernel-abi-check` first.")
    names, findings = check_variants(repository, build)
    if findings:
        listed = "; ".join(f"{f.where}: {f.what}" for f in findings[:5])
        raise BuilderError(
            f"{len(findings)} findings, nothing was uploaded: {listed}. See `python -m builder check`."
        )
    variants = {name: Metadata.read_from_file(build / name / METADATA) for name in names}
    for name, metadata in variants.items():
        if metadata.version != version:
            raise BuilderError(
                f"{name} is of version {metadata.version}, but --version is {version}. Set version in "
                "build.toml and build again, or publish the version that was built."
            )
    if not allow_dirty:
        _refuse_dirty(repository, variants)
    files = {f"build/{path.relative_to(build).as_posix()}": path for path in _files(build, names)}
    return Upload(repo, f"v{version}", variants, files, card)


def upload(plan: Upload, endpoint: str | None = None, token: str | None = None) -> str:
    """Create the repository where there is none, and make the branch hold exactly the variants.

    Returns:
        Sha of the commit to load the variants from.

    Raises:
        BuilderError: the Hub cannot be reached or refuses.
    """
    api = HfApi(endpoint=endpoint, token=token)
    try:
        api.create_repo(plan.repo, repo_type=REPO_TYPE, exist_ok=True)
        api.create_branch(plan.repo, branch=plan.branch, repo_type=REPO_TYPE, exist_ok=True)
        stale = _stale_files(api, plan)
        commit = api.create_commit(
            plan.repo,
            [
                *(CommitOperationAdd(name, path) for name, path in sorted(plan.files.items())),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message=_message(plan),
            revision=plan.branch,
            repo_type=REPO_TYPE,
        )
        api.create_commit(
            plan.repo,
            [CommitOperationAdd("README.md", plan.card)],
            commit_message=f"Card of {plan.branch}",
            repo_type=REPO_TYPE,
        )
    except HfHubHTTPError as error:
        raise BuilderError(_refusal(plan.repo, api.endpoint, error)) from error
    except HFValidationError as error:
        raise BuilderError(
            f"--repo {plan.repo} is no repository id of the form OWNER/NAME: {error}"
        ) from error
    except HTTPError as error:
        raise BuilderError(
            f"{api.endpoint} cannot be reached: {error}. Check the network and --endpoint."
        ) from error
    return commit.oid


def _refuse_dirty(repository: Repository, variants: dict[str, Metadata]) -> None:
    if source_state(repository).dirty:
        raise BuilderError(
            "The kernel's sources differ from the last commit, so nobody could tell what a binary was made "
            "from. Commit, build and publish again, or pass --allow-dirty for a trial repository."
        )
    for name, metadata in variants.items():
        source = metadata.provenance.kernel if metadata.provenance else None
        if source is None or source.dirty:
            raise BuilderError(
                f"{name} was built from sources that no commit holds. Build it again from the clean tree, or "
                "pass --allow-dirty for a trial repository."
            )
        if changed := changed_since(repository, source.commit):
            raise BuilderError(
                f"{name} was built from {source.commit[:7]}, and {changed[0]} has changed since. Build it "
                "again, or pass --allow-dirty to publish the older build."
            )


def _files(build: Path, names: Iterable[str]) -> list[Path]:
    files = (path for name in names for path in (build / name).rglob("*"))
    return [path for path in files if path.is_file() and "__pycache__" not in path.parts]


def _stale_files(api: HfApi, plan: Upload) -> list[str]:
    """Files of earlier uploads that this one does not contain."""
    there = api.list_repo_files(plan.repo, revision=plan.branch, repo_type=REPO_TYPE)
    return sorted(name for name in there if name.startswith("build/") and name not in plan.files)


def _message(plan: Upload) -> str:
    commits = {
        m.provenance.kernel.commit[:7] for m in plan.variants.values() if m.provenance and m.provenance.kernel
    }
    return f"{plan.branch} built from {', '.join(sorted(commits)) or 'an unknown commit'}"


def _refusal(repo: str, endpoint: str, error: HfHubHTTPError) -> str:
    status = error.response.status_code
    reason = error.server_message or str(error).partition("\n")[0]
    if status in (401, 403):
        return (
            f"{endpoint} does not let you write to {repo} ({status}: {reason}). Log in with `hf auth login`, "
            "or pass a token that may write there with --token."
        )
    return f"{endpoint} refused the upload to {repo} ({status}): {reason}"
