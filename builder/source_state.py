"""What a build is made from: the commit, whether anything differs from it, and the id that follows."""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

from builder.config import Repository


@dataclass(frozen=True)
class SourceState:
    """State of the build's inputs. `commit` is None outside a Git checkout."""

    commit: str | None
    dirty: bool
    unique_id: str

    def build_id(self, repository: Repository, label: str) -> str:
        """Module name and op namespace of the variant with that label, e.g. `_flash_rwkv_cpu_1a2b3c4`."""
        return f"_{repository.python_name}_{label}_{self.unique_id}"


def source_state(repository: Repository) -> SourceState:
    """Look at the inputs of the build alone: a note left in docs/ does not make a kernel dirty.

    A clean tree is named by its commit. Anything else is named by the content of its inputs, so that the
    same content always gives the same id and two contents never share a namespace.
    """
    inputs = repository.inputs()
    commit = _git(repository.root, "rev-parse", "HEAD")
    if commit is None:
        files = sorted(p for name in inputs for p in _walk(repository.root / name))
        return SourceState(None, True, f"{_content_hash(repository.root, files)}_dirty")
    commit = commit.strip()
    dirty = bool(_git(repository.root, "status", "--porcelain", "--untracked-files=all", "--", *inputs))
    if not dirty:
        return SourceState(commit, False, commit[:7])
    listed = _git(
        repository.root, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *inputs
    )
    files = sorted({repository.root / name for name in (listed or "").split("\0") if name})
    return SourceState(commit, True, f"{_content_hash(repository.root, files)}_dirty")


def changed_since(repository: Repository, commit: str) -> list[str]:
    """Inputs of the build that differ between a commit and HEAD; the commit itself when Git lacks it."""
    names = _git(repository.root, "diff", "--name-only", commit, "HEAD", "--", *repository.inputs())
    return [f"commit {commit}"] if names is None else names.splitlines()


def tracked_files(root: Path, folder: str) -> list[str] | None:
    """Paths that Git tracks under a folder, None outside a checkout."""
    listed = _git(root, "ls-files", "-z", "--", folder)
    return None if listed is None else [name for name in listed.split("\0") if name]


def tag_commit(root: Path, name: str, commit: str) -> None:
    """Give a commit a name; the same one again changes nothing."""
    _git(root, "tag", "--force", name, commit)


def _git(root: Path, *arguments: str) -> str | None:
    """Output of a Git command; None when Git is missing or this is no checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def _walk(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return [p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts]


def _content_hash(root: Path, files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        if path.is_file():  # a tracked file may have been deleted
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(root).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()[:10]
