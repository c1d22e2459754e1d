"""Lines of a build.ninja."""

from __future__ import annotations

import shlex
from collections.abc import Iterable


def rule(name: str, command: str, description: str, deps: bool = False) -> list[str]:
    """How commands of one kind look; with `deps` the compiler says which files it has read."""
    lines = [f"rule {name}", f"  command = {command}", f"  description = {description}"]
    if deps:
        lines += ["  depfile = $out.d", "  deps = gcc"]
    return [*lines, ""]


def build(
    kind: str, target: str, sources: Iterable[str], needs: Iterable[str] = (), **words: Iterable[object]
) -> list[str]:
    """One command.

    Args:
        kind: its rule.
        target: the file that it makes.
        sources: what `$in` stands for.
        needs: files that it reads besides.
        words: what other variables of the rule stand for.
    """
    line = f"build {path(target)}: {kind} {' '.join(map(path, sources))}"
    if needs := list(needs):
        line += f" | {' '.join(map(path, needs))}"
    variables = (f"  {name} = {' '.join(map(word, text))}" for name, text in words.items())
    return [line, *variables, ""]


def path(name: str) -> str:
    """A path in a build line."""
    return name.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def word(text: object) -> str:
    """A word of a shell command."""
    return shlex.quote(str(text)).replace("$", "$$")
