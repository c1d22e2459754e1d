"""Edited documents: bytes of the fuzzer choose what in a good file is replaced, renamed, dropped or wrapped.

Mutated bytes alone are hardly ever JSON or TOML, so they would test the parsers and nothing behind them.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atheris import FuzzedDataProvider

VALUES = (
    None,
    True,
    False,
    0,
    -1,
    2**70,
    1.5,
    "",
    "x",
    [],
    {},
    [[]],
    [None],
    {"": ""},
    "a" * 40,
    "cpu",
    "9.0",
)
NAMES = (
    "..",
    ".",
    "../x",
    "/etc/passwd",
    "a/../../b",
    "a\\b",
    "C:x",
    "__pycache__/a.py",
    "a.pyc",
    "a\nb",
    "ß",
    "\x00",
)


def edited(seeds: list[Any], data: bytes) -> Any:
    """A copy of one of the seeds with up to four edits; the same for the same bytes."""
    from atheris import FuzzedDataProvider  # here, for those who only read files, where it is not installed

    provider = FuzzedDataProvider(data)
    document = {"": copy.deepcopy(_pick(provider, seeds))}
    for _ in range(provider.ConsumeIntInRange(1, 4)):
        _edit(provider, document)
    return document[""]


def as_json(document: Any) -> bytes:
    return json.dumps(document).encode()


def as_toml(document: Any) -> bytes:
    """TOML with every table inline; its strings and arrays are JSON's. What is null is left out."""
    lines = (f"{json.dumps(key)} = {_inline(value)}" for key, value in _items(document))
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _edit(provider: FuzzedDataProvider, document: dict) -> None:
    """Walk down from the root, and change what is there."""
    parent, key = document, ""
    while isinstance(parent[key], (dict, list)) and parent[key] and provider.ConsumeIntInRange(0, 4):
        parent = parent[key]
        key = _pick(provider, list(parent) if isinstance(parent, dict) else range(len(parent)))
    actions: list[Callable[[], Any]] = [
        lambda: parent.__setitem__(key, copy.deepcopy(_pick(provider, VALUES))),
        lambda: parent.__setitem__(key, _text(provider)),
        lambda: parent.__setitem__(key, [parent[key]]),
        lambda: parent.__setitem__(key, {_text(provider): parent[key]}),
    ]
    if isinstance(parent, dict) and parent is not document:
        actions += [lambda: parent.pop(key), lambda: parent.__setitem__(_text(provider), parent.pop(key))]
    _pick(provider, actions)()


def _text(provider: FuzzedDataProvider) -> str:
    return _pick(provider, NAMES) if provider.ConsumeBool() else provider.ConsumeUnicode(12)


def _pick(provider: FuzzedDataProvider, choices: Any) -> Any:
    return choices[provider.ConsumeIntInRange(0, len(choices) - 1)]


def _items(value: Any) -> list[tuple[str, Any]]:
    return [(key, each) for key, each in value.items() if each is not None] if isinstance(value, dict) else []


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(key)} = {_inline(each)}' for key, each in _items(value))}}}"
    if isinstance(value, list):
        return f"[{', '.join(_inline(each) for each in value if each is not None)}]"
    return json.dumps(value)
