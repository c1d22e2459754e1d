"""Which headers the sources include, and whether build.toml lists them.

Upstream's builder compiles in a copy of the repository that holds nothing but what build.toml lists.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from builder.config import Repository

INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
GENERATED = frozenset({"registration.h"})


def unlisted_headers(repository: Repository) -> Iterator[str]:
    """Headers of the repository that a listed file includes, directly or not, and no section lists."""
    listed = {source for section in repository.sections for source in section.sources}
    folders = sorted({folder for section in repository.sections for folder in section.include})
    seen: set[str] = set()
    waiting = sorted(listed)
    while waiting:
        name = waiting.pop()
        if name in seen or not (repository.root / name).is_file():
            continue
        seen.add(name)
        waiting += _included(repository.root, name, folders)
    yield from sorted(seen - listed)


def _included(root: Path, name: str, folders: list[str]) -> Iterator[str]:
    """Files of the repository that one file includes by name, as a compiler finds them."""
    for header in INCLUDE.findall((root / name).read_text(encoding="utf-8")):
        places = [Path(name).parent, *map(Path, folders)]
        found = next((place / header for place in places if (root / place / header).is_file()), None)
        if found is not None and found.name not in GENERATED:
            yield Path(os.path.normpath(found)).as_posix()
