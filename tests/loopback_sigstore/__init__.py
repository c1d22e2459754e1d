"""Sigstore on this machine: an authority that issues certificates, and a log of what was signed.

Real clients sign with it and verify what it made; nothing leaves the machine and nobody's identity is used.
"""

from .server import LoopbackSigstore

__all__ = ["LoopbackSigstore"]
