"""The one exception of this package."""

from __future__ import annotations


class BuilderError(Exception):
    """Something the user can act on. The message is one paragraph: what is wrong and what to do next."""
