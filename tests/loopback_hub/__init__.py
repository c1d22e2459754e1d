"""A small Hub on 127.0.0.1 that real `huggingface_hub` and `kernels` clients publish to and load from."""

from __future__ import annotations

from .server import LoggedRequest, LoopbackHub

__all__ = ["LoggedRequest", "LoopbackHub"]
