"""What differs between two variants that should hold the same bytes, and where it begins."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from builder.elf import Section, read_sections, symbol_at
from builder.package import SIGNATURE

ELF_MAGIC = b"\x7fELF"
EXCERPT = 32  # bytes shown of each side
# A hash of everything else, so it says nothing of where a difference comes from.
BUILD_ID = ".note.gnu.build-id"


@dataclass(frozen=True)
class FilePair:
    """One file of both variants: its digests, None where it is missing, and where the contents part."""

    name: str
    first: str | None
    second: str | None
    where: str | None

    @property
    def same(self) -> bool:
        return self.first == self.second


def compare_variants(first: Path, second: Path) -> list[FilePair]:
    """Every file of two folders by its SHA-256; what Python caches and who signed does not count."""
    return [_pair(name, first / name, second / name) for name in sorted({*_names(first), *_names(second)})]


def _names(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts and path.name != SIGNATURE:
            yield path.relative_to(folder).as_posix()


def _pair(name: str, first: Path, second: Path) -> FilePair:
    digests = [_sha256(path) if path.is_file() else None for path in (first, second)]
    if None in digests:
        where = f"only the {'second' if digests[0] is None else 'first'} has it"
    elif digests[0] == digests[1]:
        where = None
    else:
        where = _first_difference(first, second)
    return FilePair(name, *digests, where)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _first_difference(first: Path, second: Path) -> str:
    contents = first.read_bytes(), second.read_bytes()
    if all(content.startswith(ELF_MAGIC) for content in contents):
        return _first_difference_of_modules(first, second)
    at = _parting(*contents)
    line = contents[0].count(b"\n", 0, at) + 1
    return f"line {line}, {_excerpts(*contents, at)}"


def _first_difference_of_modules(first: Path, second: Path) -> str:
    sections = zip_longest(_telling_sections(first), _telling_sections(second))
    for ours, theirs in sections:
        if ours is None or theirs is None or ours.name != theirs.name:
            names = [section.name if section else "nothing more" for section in (ours, theirs)]
            return f"section {names[0]} in the first, {names[1]} in the second"
        contents = ours.content(first), theirs.content(second)
        if contents[0] != contents[1]:
            at = _parting(*contents)
            symbol = symbol_at(first, ours.address + at) if ours.address else None
            inside = f" in {symbol}" if symbol else ""
            return f"section {ours.name}, byte {at}{inside}, {_excerpts(*contents, at)}"
    return "the file headers"


def _telling_sections(path: Path) -> list[Section]:
    return [section for section in read_sections(path) if section.name != BUILD_ID]


def _parting(first: bytes, second: bytes) -> int:
    """Index of the first byte that differs; the shorter length when one begins the other."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(first), len(second)))


def _excerpts(first: bytes, second: bytes, at: int) -> str:
    begin = max(0, at - EXCERPT // 2)
    return f"{first[begin : begin + EXCERPT]!r} and {second[begin : begin + EXCERPT]!r}"
