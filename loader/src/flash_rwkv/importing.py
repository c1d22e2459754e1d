"""From verified files to a module, through the kernels library, which checks dependencies and device."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from . import hub
from .errors import LoaderError
from .lockfile import file_entry

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from kernels.resolver import LocalKernel


class OnlyThis:
    """A resolver that knows one repository and refuses all others.

    With it the kernels library can neither go to the network nor import anything but the folder given here.
    """

    def __init__(self, repository: str, kernel: LocalKernel) -> None:
        self.repository = repository
        self.kernel = kernel

    def resolve(self, *, api: HfApi, backend: str | None, kernel: object) -> LocalKernel:
        if kernel.repo_id != self.repository:
            raise LoaderError(_another(self.repository, kernel.repo_id))
        return self.kernel


def import_variant(folder: Path, repository: str, revision: str | None, backend: str | None) -> ModuleType:
    """Import the variant in `folder`; files there must have been verified."""
    build_id = _checked_id(folder, repository)
    if twin := sys.modules.get(build_id):
        return _same_or_refuse(twin, folder, build_id)
    try:
        with _no_bytecode():
            return _import(folder, repository, revision, backend)
    except BaseException:
        sys.modules.pop(build_id, None)  # half of it, which kernels before 0.17 leave there
        raise


def _import(folder: Path, repository: str, revision: str | None, backend: str | None) -> ModuleType:
    try:
        from kernels.load import get_kernel_with_resolver
    except ImportError:  # kernels before 0.17, which knows of no dependencies between kernels
        from kernels import get_local_kernel

        return get_local_kernel(folder, backend=backend)

    from kernels._rust import KernelDependency, KernelVersion, Metadata
    from kernels.resolver import LocalKernel
    from kernels.validate import AllValidator, ArchValidator, default_metadata_validators

    metadata = Metadata.read_from_file(folder / "metadata.json")
    return get_kernel_with_resolver(
        api=hub.make_api(),
        backend=backend,
        kernel=KernelDependency(repo_id=repository, version=KernelVersion.Revision(revision or "local")),
        resolver=OnlyThis(repository, LocalKernel(variant_path=folder, metadata=metadata)),
        metadata_validator=AllValidator([*default_metadata_validators(), ArchValidator()]),
    )


def _checked_id(folder: Path, repository: str) -> str:
    """Return the name that the module will have in Python and in Torch, refusing one that is not a kernel's.

    Builders make it of the kernel's own name; any other could take the place of another module.
    """
    path = folder / "metadata.json"
    try:
        metadata = json.loads(path.read_bytes())
        name, build_id = metadata["name"].replace("-", "_"), metadata["id"]
        others = [depends["repo-id"] for depends in metadata.get("kernel-depends") or ()]
        if not re.fullmatch(rf"_{re.escape(name)}_\w+", build_id):
            raise ValueError(f"the id of the kernel {name} must be _{name}_..., got {build_id!r}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoaderError(f"{path} is not the metadata of a kernel: {error!r}. Nothing was loaded") from None
    if others:
        raise LoaderError(_another(repository, others[0]))
    return build_id


def _another(repository: str, other: str) -> str:
    return f"{repository} wants to load the kernel {other} too: that is not allowed"


def _same_or_refuse(twin: ModuleType, folder: Path, build_id: str) -> ModuleType:
    """Two builds of one id cannot share a process: Torch registers an id's operators once."""
    theirs = Path(twin.__file__).parent
    if _content(theirs) != _content(folder):
        raise LoaderError(
            f"{theirs} is loaded already and has the build id {build_id} of {folder} but other content: "
            "load one of them in a new process"
        )
    return twin


def _content(folder: Path) -> dict[str, object]:
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix(): file_entry(path) for path in files}


@contextmanager
def _no_bytecode() -> Iterator[None]:
    """Keep Python from leaving compiled files beside verified ones."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before
