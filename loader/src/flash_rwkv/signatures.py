"""Who made a kernel: digests say what a file is, not whose. Asked where FLASH_RWKV_SIGNER names somebody.

Signatures are Sigstore's, as `python -m builder sign` makes them: of metadata.json, which has the digests of
all else.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import IntegrityError, LoaderError
from .hub import SIGNATURE, own_digests
from .lockfile import file_entry

if TYPE_CHECKING:
    from sigstore.verify import Verifier

GITHUB = "https://token.actions.githubusercontent.com"
_ADVICE = "Nothing was loaded: unset FLASH_RWKV_SIGNER if you trust it without"


@dataclass(frozen=True)
class Signer:
    """An identity, such as the address of a workflow, and who vouches for it."""

    identity: str
    issuer: str = GITHUB

    @classmethod
    def required(cls) -> Signer | None:
        """Read FLASH_RWKV_SIGNER: an identity, or one and its issuer with a space between them."""
        words = os.environ.get("FLASH_RWKV_SIGNER", "").split()
        if len(words) > 2:
            raise LoaderError(
                f"FLASH_RWKV_SIGNER must be an identity and perhaps its issuer, got {len(words)} words"
            )
        return cls(*words) if words else None


def check_signature(folder: Path, variant: str, signer: Signer) -> None:
    """Refuse a variant that this signer has not signed, or that is not what was signed.

    Raises:
        IntegrityError: so it is; nothing of the variant has run.
        LoaderError: signatures cannot be verified here.
    """
    metadata = (folder / "metadata.json").read_bytes()
    if not (folder / SIGNATURE).is_file():
        raise IntegrityError(f"{folder} is not signed, expected a signature of {signer.identity}. {_ADVICE}")
    # Before anything is read from it.
    _verify(metadata, (folder / SIGNATURE).read_bytes(), folder, signer)
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    found = {name: path for name, path in found.items() if "__pycache__" not in path.parts}
    signed = own_digests(variant, metadata, {name: path.stat().st_size for name, path in found.items()})
    if not signed:
        raise IntegrityError(f"{folder} has no digests, so its signature says nothing. {_ADVICE}")
    for name, expected in signed.items():
        if (got := file_entry(found[name])) != expected:
            raise IntegrityError(f"{found[name]} is not what was signed: {expected}; got {got}. {_ADVICE}")


def _verify(content: bytes, bundle: bytes, folder: Path, signer: Signer) -> None:
    try:
        from sigstore.errors import VerificationError
        from sigstore.models import Bundle, InvalidBundle
        from sigstore.verify.policy import Identity
    except ImportError as error:
        raise LoaderError(
            f"FLASH_RWKV_SIGNER needs the package sigstore: pip install sigstore ({error})"
        ) from None
    policy = Identity(identity=signer.identity, issuer=signer.issuer)
    try:
        _verifier().verify_artifact(content, Bundle.from_json(bundle), policy)
    except (VerificationError, InvalidBundle, ValueError) as error:
        raise IntegrityError(
            f"{folder} is not signed by {signer.identity}, for whom {signer.issuer} vouches: {error}. "
            f"{_ADVICE}"
        ) from None


def _verifier() -> Verifier:
    """Return what knows whom to trust: FLASH_RWKV_SIGSTORE_ROOT, else the public Sigstore."""
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from sigstore.models import TrustedRoot
    from sigstore.verify import Verifier

    path = os.environ.get("FLASH_RWKV_SIGSTORE_ROOT")
    try:
        if path:
            return Verifier(trusted_root=TrustedRoot.from_file(path))
        return Verifier.production(offline=HF_HUB_OFFLINE)
    except Exception as error:  # of TUF, of the network, of a file: they have no common base
        place = f"FLASH_RWKV_SIGSTORE_ROOT={path}" if path else "the public Sigstore"
        raise LoaderError(f"cannot read whom to trust from {place}: {error}. Nothing was loaded") from error
