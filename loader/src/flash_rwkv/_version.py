"""The loader's own version; the kernel's is in the lock."""

from __future__ import annotations

__version__ = "0.4.0"
