"""What can go wrong before a kernel is imported. Nothing of it has run when one of these is raised."""

from __future__ import annotations


class LoaderError(RuntimeError):
    """A kernel could not be loaded; the message says why and what to do next."""


class NotPinnedError(LoaderError):
    """The lock file names no commit."""


class IntegrityError(LoaderError):
    """A file differs from its digest in the lock."""


class NoVariantError(LoaderError):
    """No build variant fits this machine."""


class UnavailableError(LoaderError):
    """The files are neither on this machine nor to be had from the Hub."""
