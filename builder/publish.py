"""Uploads build/ to a Hub repository of type `kernel`: branch vN gets the variants, main gets the card."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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
from builder.release import refuse_to_break, release_commit

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
    commit: str | None  # that a release was built from

    @property
    def tag(self) -> str | None:
        """Name of a release, e.g. `v1-1a2b3c4`; a trial has none."""
        return f"{self.branch}-{self.commit[:7]}" if self.commit else None


def prepare_upload(repository: Repository, repo: str, version: int, trial: bool) -> Upload:
    """Decide what to upload, refusing what should not be.

    Raises:
        BuilderError: a finding of the checks, or one that cannot be made here; what is no release and no
            trial; another version than the variants', or no card.
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
    commit = None if trial else release_commit(repository, [build / name for name in names])
    files = {f"build/{path.relative_to(build).as_posix()}": path for path in _files(build, names)}
    return Upload(repo, f"v{version}", variants, files, card, commit)


def compare_with_published(plan: Upload, endpoint: str | None = None, token: str | None = None) -> None:
    """Look at what the branch of a release holds now; nothing is sent.

    Raises:
        BuilderError: something that works today would not work any more, or the Hub cannot be reached.
    """
    if plan.commit is None:
        return
    api = HfApi(endpoint=endpoint, token=token)
    folders = [plan.files[f"build/{name}/{METADATA}"].parent for name in plan.variants]
    with _explained(plan.repo, api.endpoint):
        refuse_to_break(api, plan.repo, plan.branch, folders)


def upload(plan: Upload, endpoint: str | None = None, token: str | None = None) -> str:
    """Create the repository where there is none, make the branch hold exactly the variants, tag a release.

    Returns:
        Sha of the commit to load the variants from.

    Raises:
        BuilderError: the Hub cannot be reached or refuses.
    """
    api = HfApi(endpoint=endpoint, token=token)
    with _explained(plan.repo, api.endpoint):
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
        if plan.tag:
            api.create_tag(plan.repo, tag=plan.tag, revision=commit.oid, repo_type=REPO_TYPE, exist_ok=True)
    return commit.oid


@contextmanager
def _explained(repo: str, endpoint: str) -> Iterator[None]:
    """Turns what the client raises into one paragraph."""
    try:
        yield
    except HfHubHTTPError as error:
        raise BuilderError(_refusal(repo, endpoint, error)) from error
    except HFValidationError as error:
        raise BuilderError(f"--repo {repo} is no repository id of the form OWNER/NAME: {error}") from error
    except HTTPError as error:
        raise BuilderError(
            f"{endpoint} cannot be reached: {error}. Check the network and --endpoint."
        ) from error


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
