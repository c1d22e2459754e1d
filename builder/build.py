"""Builds one variant, from the source's state to the finished folder."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from builder.compile import compile_variant
from builder.config import Repository
from builder.ninja_file import MODULE, Plan
from builder.package import Parts, package_variant
from builder.source_state import source_state
from builder.toolchain import find_toolchain
from builder.variants import PlainVariant, Variant


@dataclass(frozen=True)
class Built:
    """A finished variant."""

    folder: Path
    build_id: str
    commands: int  # that ninja ran
    changed: bool  # whether the folder differs from what was there


def build_variant(
    repository: Repository,
    variant: Variant | PlainVariant,
    console: Console,
    *,
    capabilities: tuple[str, ...] = (),
    jobs: int | None = None,
    clean: bool = False,
    verbose: bool = False,
) -> Built:
    """Compile a variant, if it is compiled, as far as it is out of date, and write `build/<variant>/`.

    Raises:
        BuilderError: a tool is missing, build.toml is wrong, or a source does not compile.
    """
    state = source_state(repository)
    build_id = state.build_id(repository, variant.label)
    work = repository.root / ".build" / variant.name
    parts, commands = Parts(repository, variant, build_id, work), 0
    plan = None
    if isinstance(variant, Variant):
        plan = Plan(repository, variant, find_toolchain(variant), build_id, work, capabilities)
    with locked(work.with_suffix(".lock")):
        if clean:
            shutil.rmtree(work, ignore_errors=True)
        if plan:
            commands = compile_variant(plan, console, jobs, verbose)
            parts = replace(
                parts, module=work / MODULE, archs=plan.archs(), toolchain=plan.toolchain.versions()
            )
        folder, changed = package_variant(parts, state)
    return Built(folder, build_id, commands, changed)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time; a second waits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
