"""Compiles, checks and publishes this kernel repository: `python -m builder --help`."""

from __future__ import annotations

__version__ = "0.1.0"
