"""Builds one variant, from the source's state to the finished folder."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from builder.compile import compile_variant
from builder.config import Repository
from builder.ninja_file import Plan
from builder.package import package_variant
from builder.source_state import source_state
from builder.toolchain import find_toolchain
from builder.variants import Variant


@dataclass(frozen=True)
class Built:
    """A finished variant."""

    folder: Path
    build_id: str
    commands: int  # that ninja ran
    changed: bool  # whether the folder differs from what was there


def build_variant(
    repository: Repository,
    variant: Variant,
    console: Console,
    *,
    capabilities: tuple[str, ...] = (),
    jobs: int | None = None,
    clean: bool = False,
    verbose: bool = False,
) -> Built:
    """Compile a variant as far as it is out of date and write `build/<variant>/`.

    Raises:
        BuilderError: a tool is missing, build.toml is wrong, or a source does not compile.
    """
    toolchain = find_toolchain(variant)
    state = source_state(repository)
    plan = Plan(
        repository=repository,
        variant=variant,
        toolchain=toolchain,
        build_id=state.build_id(repository, variant.backend),
        work=repository.root / ".build" / variant.name,
        capabilities=capabilities,
    )
    with locked(plan.work.with_suffix(".lock")):
        if clean:
            shutil.rmtree(plan.work, ignore_errors=True)
        commands = compile_variant(plan, console, jobs, verbose)
        folder, changed = package_variant(plan, state)
    return Built(folder, plan.build_id, commands, changed)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time; a second waits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
