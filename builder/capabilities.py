"""CUDA capabilities as build.toml writes them: `9.0` for machine code, `12.0+PTX` for that and PTX."""

from __future__ import annotations

import re
from dataclasses import dataclass

from builder.errors import BuilderError

FORM = re.compile(r"(\d+)\.(\d+)([af]?)(\+PTX)?")


@dataclass(frozen=True)
class Capability:
    """One of them."""

    major: int
    minor: int
    feature: str  # "a" or "f" for instructions that later devices do not have
    ptx: bool

    @property
    def number(self) -> str:
        """As compilers write it: `90a`."""
        return f"{self.major}{self.minor}{self.feature}"


def parse_capability(text: str) -> Capability:
    """Read one.

    Raises:
        BuilderError: it is of another form.
    """
    match = FORM.fullmatch(text)
    if match is None:
        raise BuilderError(f"CUDA capability {text!r} is not of the form 9.0, 9.0a or 12.0+PTX.")
    return Capability(int(match[1]), int(match[2]), match[3], match[4] is not None)


def in_order(capabilities: set[str]) -> list[str]:
    """From the oldest to the newest."""
    return sorted(capabilities, key=lambda text: (_age(text), text))


def up_to(capabilities: tuple[str, ...], newest: str | None) -> tuple[str, ...]:
    """Those that a compiler knows, of which `newest` is the last; devices after that take its PTX."""
    if newest is None:
        return capabilities
    known = [text for text in capabilities if _age(text) <= _age(newest)]
    if len(known) == len(capabilities) or not known:
        return tuple(known)
    last = max(known, key=_age)
    return tuple(f"{text}+PTX" if text == last and not text.endswith("+PTX") else text for text in known)


def _age(text: str) -> tuple[int, int]:
    capability = parse_capability(text)
    return capability.major, capability.minor
