"""The kernel's public API, read from its Python without running it, and what a new one breaks of an old one.

Public is what `__all__` names, and what the `__all__` of a named submodule names. Names, arguments and dtypes
may be added; to take one away, or to change a default or an order, needs another version.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DTYPE = re.compile(r"\b(?:bfloat16|float(?:16|32|64)|u?int(?:8|16|32|64)|complex(?:64|128))\b")
VARIADIC = ("*", "**")


@dataclass(frozen=True)
class Parameter:
    """An argument of a function; `kind` is positional, keyword, * or **, `default` its source text."""

    name: str
    kind: str
    default: str | None


@dataclass(frozen=True)
class Entry:
    """A public name: the arguments of a function (None for anything else) and the dtypes in its docstring."""

    parameters: tuple[Parameter, ...] | None
    dtypes: frozenset[str] = frozenset()


def read_api(package: Path) -> dict[str, Entry]:
    """Public names of a kernel's Python package, e.g. `wkv7` and `layers.Wkv7.forward`."""
    return dict(_entries(package, "__init__", ""))


def broken(old: dict[str, Entry], new: dict[str, Entry]) -> Iterator[str]:
    """What works with the old API and not with the new one."""
    for name, entry in sorted(old.items()):
        if name not in new:
            yield f"{name} is gone"
            continue
        yield from (f"{name}: {what}" for what in _broken_arguments(entry.parameters, new[name].parameters))
        if lost := sorted(entry.dtypes - new[name].dtypes):
            yield f"{name} names no longer {', '.join(lost)}"


def _entries(package: Path, module: str, prefix: str) -> Iterator[tuple[str, Entry]]:
    tree = _parse(package, module)
    for name in _public_names(tree):
        if _is_module(package, name) and _definition(tree, name) is None:
            yield prefix + name, Entry(None)
            yield from _entries(package, name, f"{prefix}{name}.")
        else:
            yield from _described(_find(package, module, name), prefix + name)


def _described(node: ast.AST | None, name: str) -> Iterator[tuple[str, Entry]]:
    if isinstance(node, ast.FunctionDef):
        dtypes = frozenset(DTYPE.findall(ast.get_docstring(node) or ""))
        yield name, Entry(tuple(_parameters(node.args)), dtypes)
    else:
        yield name, Entry(None)
    for member in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(member, ast.FunctionDef) and (member.name == "__init__" or member.name[0] != "_"):
            yield from _described(member, f"{name}.{member.name}")


def _parameters(arguments: ast.arguments) -> Iterator[Parameter]:
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + arguments.defaults
    for argument, default in zip(positional, defaults, strict=True):
        yield Parameter(argument.arg, "positional", default and ast.unparse(default))
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield Parameter(argument.arg, "keyword", default and ast.unparse(default))
    for argument, kind in zip((arguments.vararg, arguments.kwarg), VARIADIC, strict=True):
        if argument:
            yield Parameter(argument.arg, kind, None)


def _broken_arguments(old: tuple[Parameter, ...] | None, new: tuple[Parameter, ...] | None) -> Iterator[str]:
    if old is None:
        return
    if new is None:
        yield "is no function any more"
        return
    there = {parameter.name: parameter for parameter in new}
    for parameter in old:
        now = there.get(parameter.name)
        if now is None:
            yield f"{parameter.name} is gone"
        elif now.kind != parameter.kind:
            yield f"{parameter.name} is {now.kind}, was {parameter.kind}"
        elif parameter.default is not None and now.default != parameter.default:
            yield f"{parameter.name} is {now.default or 'without default'}, was {parameter.default}"
    before, after = ([p.name for p in parameters if p.kind == "positional"] for parameters in (old, new))
    if set(before) <= set(after) and after[: len(before)] != before:
        yield f"the order is {', '.join(after)}, was {', '.join(before)}"
    known = {parameter.name for parameter in old}
    for parameter in new:
        if parameter.name not in known and parameter.default is None and parameter.kind not in VARIADIC:
            yield f"{parameter.name} is new and has no default"


def _find(package: Path, module: str, name: str) -> ast.AST | None:
    """What a name stands for, through imports from siblings and `other = name`."""
    tree = _parse(package, module)
    node = _definition(tree, name)
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name):
        return _find(package, module, node.value.id)
    if node is None:
        for statement in tree.body:
            if isinstance(statement, ast.ImportFrom) and statement.level == 1 and statement.module:
                for alias in statement.names:
                    if (alias.asname or alias.name) == name and _is_module(package, statement.module):
                        return _find(package, statement.module, alias.name)
    return node


def _definition(tree: ast.Module, name: str) -> ast.AST | None:
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
            return node
        if isinstance(node, ast.Assign) and any(ast.unparse(target) == name for target in node.targets):
            return node
    return None


def _public_names(tree: ast.Module) -> list[str]:
    node = _definition(tree, "__all__")
    return [] if node is None else ast.literal_eval(node.value)


def _is_module(package: Path, name: str) -> bool:
    return (package / f"{name}.py").is_file()


def _parse(package: Path, module: str) -> ast.Module:
    return ast.parse((package / f"{module}.py").read_text(encoding="utf-8"))
