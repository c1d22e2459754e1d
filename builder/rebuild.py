"""Builds a commit in a clone of its own, with the builder that the commit holds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from builder.errors import BuilderError
from builder.lock import TOOLKITS

HERE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Recipe:
    """What to build: a variant of a commit. Without capabilities it has all that build.toml lists."""

    commit: str
    variant: str
    capabilities: tuple[str, ...] = ()
    locked: bool = False


@dataclass(frozen=True)
class Circumstances:
    """What must not show in the bytes."""

    folder: Path  # of a clone
    jobs: int | None = None
    umask: int = -1  # as it is
    environment: Mapping[str, str] = field(default_factory=dict)


def clone(root: Path, commit: str, folder: Path) -> None:
    """Check a commit out into a folder, replacing what is there.

    Raises:
        BuilderError: the checkout at `root` does not have the commit.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for command in (
        ["clone", "--quiet", "--shared", "--no-checkout", str(root), str(folder)],
        ["-C", str(folder), "checkout", "--quiet", "--detach", commit],
    ):
        done = subprocess.run(["git", *command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuilderError(
                f"{root} does not give commit {commit}: {done.stderr.strip()}. Fetch it, or name a checkout "
                "that has it with --root."
            )
    # What one clone fetches by its digest serves them all.
    toolkits = root.resolve() / TOOLKITS
    toolkits.mkdir(parents=True, exist_ok=True)
    (folder / TOOLKITS).parent.mkdir(exist_ok=True)
    (folder / TOOLKITS).symlink_to(toolkits)


def rebuild(recipe: Recipe, under: Circumstances, console: Console) -> Path:
    """Build a variant in the clone of its commit.

    Returns:
        The variant's folder.

    Raises:
        BuilderError: it does not build; the messages have been printed.
    """
    command = [sys.executable, "-m", "builder", "build", "--variant", recipe.variant]
    command += [word for capability in recipe.capabilities for word in ("--capability", capability)]
    command += ["--locked"] if recipe.locked else []
    command += ["--jobs", str(under.jobs)] if under.jobs else []
    shown = f"{under.folder}: python {' '.join(command[1:])}"
    console.print(shown, highlight=False, markup=False, soft_wrap=True)
    # The clone's own builder comes first, as Python looks into the current folder; ours serves where none is.
    environment = {**os.environ, **under.environment, "PYTHONPATH": str(HERE)}
    done = subprocess.run(command, cwd=under.folder, env=environment, umask=under.umask, check=False)
    if done.returncode:
        raise BuilderError(f"{recipe.variant} of {recipe.commit[:7]} does not build; see the messages above.")
    return under.folder / "build" / recipe.variant
