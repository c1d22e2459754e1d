"""Lets docstrings that name functions in Sphinx's way, :func:`wkv6`, link to them in the site."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":func:`(?:(\w+)\.)?(\w+)`")


class Roles(Extension):
    """``:func:`name` `` of a docstring's own module, ``:func:`module.name` `` of its neighbour."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = ROLE.sub(
                lambda found: _link(obj.module.path, *found.groups()), obj.docstring.value
            )


def _link(module: str, neighbour: str | None, name: str) -> str:
    if neighbour:
        module = f"{module.rpartition('.')[0]}.{neighbour}"
    return f"[`{name}`][{module}.{name}]"
