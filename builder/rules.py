"""Static rules for a kernel's Python: upstream's builder refuses what breaks them, so we do first."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

OLDEST_PYTHON = (3, 9)
STANDARD_LIBRARY = frozenset(sys.stdlib_module_names) - {"tomllib"}  # newer than Python 3.9
REGISTRATIONS = frozenset(
    {
        "custom_op",
        "define",
        "impl",
        "register_autocast",
        "register_autograd",
        "register_fake",
        "register_kernel",
        "register_torch_dispatch",
        "register_vmap",
    }
)
PREFIX = "add_op_namespace_prefix"
NEWER_ARGUMENTS = {"zip": {"strict"}, "dataclass": {"slots", "kw_only", "match_args"}}  # Python 3.10


def python_findings(path: Path, python_name: str, generated: bool = False) -> Iterator[str]:
    """What is wrong in one file, as `line N: …`.

    Args:
        path: a Python file of the kernel.
        python_name: the kernel's package name.
        generated: the file is written by the builder, which may define the prefix function.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=OLDEST_PYTHON)
    except (SyntaxError, UnicodeDecodeError) as error:
        yield f"line {getattr(error, 'lineno', 0)}: not valid Python 3.9: {error}"
        return
    deferred = any(
        isinstance(node, ast.ImportFrom)
        and node.module == "__future__"
        and any(alias.name == "annotations" for alias in node.names)
        for node in tree.body
    )
    for node in ast.walk(tree):
        yield from (
            f"line {node.lineno}: {text}" for text in _findings(node, python_name, deferred, generated)
        )


def _findings(node: ast.AST, python_name: str, deferred: bool, generated: bool) -> Iterator[str]:
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        yield from _import_findings(node, python_name)
    elif isinstance(node, ast.Call):
        yield from _call_findings(node)
    elif isinstance(node, ast.Attribute):
        if ast.unparse(node) == f"torch.ops.{python_name}":
            yield f"torch.ops.{python_name}: ops live in the build's own namespace; use ops from ._ops"
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        if node.name == PREFIX and not generated:
            yield f"defines {PREFIX}: import it from ._ops"
        arguments = node.args
        annotated = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        annotated += [a for a in (arguments.vararg, arguments.kwarg) if a]
        for annotation in [node.returns, *(a.annotation for a in annotated)]:
            yield from _annotation_findings(annotation, deferred)
    elif isinstance(node, ast.AnnAssign):
        yield from _annotation_findings(node.annotation, deferred)
    elif isinstance(node, ast.Try):
        yield from _fallback_findings(node)


def _import_findings(node: ast.Import | ast.ImportFrom, python_name: str) -> Iterator[str]:
    if isinstance(node, ast.ImportFrom) and node.level:
        return
    names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
    for name in names:
        top = name.partition(".")[0]
        if top == python_name:
            yield f"imports {name} absolutely; within the kernel imports are relative"
        elif top != "torch" and top not in STANDARD_LIBRARY:
            yield f"imports {name}; a kernel may import torch and the standard library of Python 3.9 only"


def _call_findings(node: ast.Call) -> Iterator[str]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    newer = NEWER_ARGUMENTS.get(name, set()) & {keyword.arg for keyword in node.keywords}
    if newer:
        yield f"{name}({', '.join(sorted(newer))}=…) needs Python 3.10"
    if name in REGISTRATIONS and _is_torch_library(node.func):
        first = node.args[0] if node.args else None
        direct = isinstance(first, ast.Call) and ast.unparse(first.func).rpartition(".")[2] == PREFIX
        if not direct:
            yield f'{name} must be called with {PREFIX}("…") itself as its first argument'


def _is_torch_library(function: ast.expr) -> bool:
    """`torch.library.register_fake` or the name imported from there, but not some other object's method."""
    if isinstance(function, ast.Name):
        return function.id.startswith("register_") or function.id == "custom_op"
    return ast.unparse(function).startswith(("torch.library.", "library."))


def _annotation_findings(annotation: ast.expr | None, deferred: bool) -> Iterator[str]:
    if annotation is None or deferred:
        return
    if any(isinstance(n, ast.BinOp) and isinstance(n.op, ast.BitOr) for n in ast.walk(annotation)):
        yield "X | Y in an annotation needs `from __future__ import annotations` on Python 3.9"


def _fallback_findings(node: ast.Try) -> Iterator[str]:
    imports_ops = any(
        isinstance(n, ast.ImportFrom) and (n.module == "_ops" or any(a.name == "_ops" for a in n.names))
        for statement in node.body
        for n in ast.walk(statement)
    )
    if imports_ops and node.handlers:
        yield "imports _ops inside try; there is no fallback for a kernel's ops"
