"""Variants that somebody carried to this machine: in a folder by `prefetch --to`, or in a wheel by `wheel`.

A bundle is a store with its locks beside it. It only supplies bytes, which are verified like any others while
they are copied; its locks count for what the package does not pin itself.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .lockfile import Files, Lock
from .store import Store

PACKAGE = "flash_rwkv_kernels"  # the folder that the wheel installs beside this package
_SUFFIX = ".lock.json"


@dataclass(frozen=True)
class Bundle:
    """A folder that may hold variants and locks."""

    root: Path

    def locks(self) -> list[Lock]:
        return [Lock.read(path) for path in sorted(self.root.glob(f"*@*{_SUFFIX}"))]

    def paths(self, variant: str, files: Files) -> dict[str, Path]:
        """Return those files of a variant that are here, unverified."""
        folder = Store(self.root).folder(variant, files)
        return {name: folder / name for name in files if (folder / name).is_file()}


def bundles() -> list[Bundle]:
    """Return the bundles of this machine, the one chosen by hand first."""
    return [Bundle(root) for root in (local_folder(), installed_folder()) if root]


def local_folder() -> Path | None:
    """Return FLASH_RWKV_LOCAL."""
    setting = os.environ.get("FLASH_RWKV_LOCAL")
    return Path(setting).expanduser().absolute() if setting else None


def installed_folder() -> Path:
    """Return where pip puts the wheel: beside this package, where nothing on Python's path can pose as it."""
    return Path(__file__).parents[1] / PACKAGE


def lock_name(repository: str, revision: str) -> str:
    """Return the file that holds the digests of a revision, in a store or a bundle."""
    return f"{repository.replace('/', '--')}@{revision}{_SUFFIX}"
