"""Builds one variant, from the source's state to the finished folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from builder.compile import compile_variant
from builder.config import Repository
from builder.exclusive import exclusive
from builder.lock import Lock, locked_toolchain, unlocked_toolchain
from builder.ninja_file import MODULE, Plan
from builder.package import Parts, package_variant
from builder.source_state import source_state
from builder.toolchain import Toolchain
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
    lock: Lock | None = None,
) -> Built:
    """Compile a variant, if it is compiled, as far as it is out of date, and write `build/<variant>/`.

    With a lock the tools are the lock's, and the metadata names it.

    Raises:
        BuilderError: a tool is missing, build.toml is wrong, or a source does not compile.
    """
    state = source_state(repository)
    build_id = state.build_id(repository, variant.label)
    work = repository.root / ".build" / variant.name
    parts, commands = Parts(repository, variant, build_id, work, lock=lock.sha256 if lock else None), 0
    plan = None
    if isinstance(variant, Variant):
        if lock:
            tools = locked_toolchain(repository, lock, variant, console)
        else:
            tools = unlocked_toolchain(repository, variant, console)
        plan = Plan(repository, variant, tools, build_id, work, capabilities)
    with exclusive(work.with_suffix(".lock")):
        if clean:
            shutil.rmtree(work, ignore_errors=True)
        if plan:
            _forget_objects_of_other_tools(work, plan.toolchain, lock)
            commands = compile_variant(plan, console, jobs, verbose)
            parts = replace(
                parts, module=work / MODULE, archs=plan.archs(), toolchain=plan.toolchain.versions()
            )
        folder, changed = package_variant(parts, state)
    return Built(folder, build_id, commands, changed)


def _forget_objects_of_other_tools(work: Path, toolchain: Toolchain, lock: Lock | None) -> None:
    """Ninja compares commands, and those say nothing of a compiler that was replaced where it stood."""
    tools = json.dumps({**toolchain.versions(), "lock": lock.sha256 if lock else None})
    stamp = work / "tools.json"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == tools:
        return
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    stamp.write_text(tools, encoding="utf-8")
