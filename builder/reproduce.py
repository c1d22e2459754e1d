"""Builds a commit twice under circumstances that differ, and compares what comes out."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from builder.config import Repository
from builder.differences import FilePair, compare_variants
from builder.errors import BuilderError
from builder.rebuild import Circumstances, Recipe, clone, rebuild
from builder.source_state import source_state

DIGITS = 16  # of a digest, where two stand in a row


def reproduce(
    repository: Repository, variant: str, capabilities: tuple[str, ...], locked: bool, console: Console
) -> list[FilePair]:
    """Build the last commit's variant twice, in two folders; they stay when something differs.

    Raises:
        BuilderError: no commit describes the sources, or they do not build.
    """
    state = source_state(repository)
    if state.commit is None or state.dirty:
        raise BuilderError(
            f"The sources in {repository.root} differ from the last commit, and a commit is what is built "
            "again. Commit them first."
        )
    recipe = Recipe(state.commit, variant, capabilities, locked)
    place = repository.root / ".build" / "reproduce" / variant
    ways = _two_ways(place)
    for under in ways:
        clone(repository.root, state.commit, under.folder)
    first, second = (rebuild(recipe, under, console) for under in ways)
    pairs = compare_variants(first, second)
    if all(pair.same for pair in pairs):
        shutil.rmtree(place)
    return pairs


def _two_ways(place: Path) -> tuple[Circumstances, Circumstances]:
    cores = os.cpu_count() or 1
    return (
        Circumstances(place / "first", jobs=cores),
        Circumstances(
            place / "a second folder",
            jobs=cores // 2 or 2,
            umask=0o077,
            environment={"TZ": "XYZ-9", "LANG": "POSIX", "USER": "somebody", "TMPDIR": str(place)},
        ),
    )


def print_comparison(pairs: list[FilePair], titles: tuple[str, str], console: Console) -> bool:
    """Print a table of both digests and where the contents part; whether all are the same."""
    table = Table(box=None, pad_edge=False)
    table.add_column("file", overflow="fold")
    for title in (*(f"sha256 of {title}" for title in titles), ""):
        table.add_column(title)
    for pair in pairs:
        digests = [(digest or "–")[:DIGITS] for digest in (pair.first, pair.second)]
        table.add_row(escape(pair.name), *digests, "[green]same[/]" if pair.same else "[red]differs[/]")
    console.print(table)
    different = [pair for pair in pairs if not pair.same]
    for pair in different:
        console.print(f"[red]{escape(pair.name)}:[/] {escape(pair.where)}", highlight=False, soft_wrap=True)
    return not different
