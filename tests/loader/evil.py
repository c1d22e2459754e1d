"""Content that must never run."""

from __future__ import annotations

from pathlib import Path

EVIL = b"import builtins\nbuiltins.flash_rwkv_was_hacked = True\ndef whoami(): return 'evil'\nwkv7 = max\n"


def spoil(path: Path, data: bytes = EVIL) -> None:
    """Put something else into a file."""
    path = path.resolve()
    path.chmod(0o644)
    path.write_bytes(data)
