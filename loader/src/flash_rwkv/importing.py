"""From verified files to a module, through the kernels library, which checks dependencies and device."""

from __future__ import annotations

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
    """A resolver that knows one repository and refuses all others, a kernel's own dependencies included.

    With it the kernels library can neither go to the network nor import anything but the folder given here.
    """

    def __init__(self, repository: str, kernel: LocalKernel) -> None:
        self.repository = repository
        self.kernel = kernel

    def resolve(self, *, api: HfApi, backend: str | None, kernel: object) -> LocalKernel:
        if kernel.repo_id != self.repository:
            raise LoaderError(
                f"{self.repository} wants to load the kernel {kernel.repo_id} too: that is not allowed"
            )
        return self.kernel


def import_variant(folder: Path, repository: str, revision: str | None, backend: str | None) -> ModuleType:
    """Import the variant in `folder`; files there must have been verified."""
    from kernels._rust import KernelDependency, KernelVersion, Metadata
    from kernels.load import get_kernel_with_resolver
    from kernels.resolver import LocalKernel
    from kernels.validate import AllValidator, ArchValidator, default_metadata_validators

    metadata = Metadata.read_from_file(folder / "metadata.json")
    if twin := sys.modules.get(metadata.id):
        return _same_or_refuse(twin, folder, metadata.id)
    kernel = LocalKernel(variant_path=folder, metadata=metadata)
    with _no_bytecode():
        return get_kernel_with_resolver(
            api=hub.make_api(),
            backend=backend,
            kernel=KernelDependency(repo_id=repository, version=KernelVersion.Revision(revision or "local")),
            resolver=OnlyThis(repository, kernel),
            metadata_validator=AllValidator([*default_metadata_validators(), ArchValidator()]),
        )


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
