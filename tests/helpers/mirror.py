"""This checkout's sources in a folder of their own, for builds that leave build/ as it is."""

from __future__ import annotations

from pathlib import Path

from builder.config import Repository


def mirror(repository: Repository, root: Path) -> Path:
    """Make `root` hold links to what decides a build; objects made there stay from run to run."""
    root.mkdir(parents=True, exist_ok=True)
    for name in repository.inputs():
        if not (root / name).is_symlink():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).symlink_to(repository.root / name)
    return root
