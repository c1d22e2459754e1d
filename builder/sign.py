"""Signs variants with Sigstore, for whoever wants to know who made a binary before running it.

No key is kept: an identity that a token proves gets a certificate for some minutes, and the signature is
entered in a log. What is signed is metadata.json, which has the digest of every other file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kernels._rust import Digest, DigestValidationError, Metadata
from sigstore.models import ClientTrustConfig
from sigstore.oidc import ExpiredIdentity, IdentityError, IdentityToken, detect_credential
from sigstore.sign import SigningContext

from builder.check import variant_folders
from builder.config import Repository
from builder.errors import BuilderError
from builder.package import METADATA, SIGNATURE


def sign(
    repository: Repository, wanted: Sequence[str], token: str | None, trust_config: Path | None
) -> tuple[list[Path], str]:
    """Write the signature of each variant beside its metadata; all of them, or none.

    Args:
        wanted: names of variants; empty for all that are in build/.
        token: an OpenID Connect token; None for that of the CI job.
        trust_config: of another Sigstore than the public one.

    Returns:
        The signatures' files, and the identity that signed.

    Raises:
        BuilderError: a variant is missing or is not what its metadata says, there is no identity, or Sigstore
            does not sign.
    """
    folders = variant_folders(repository.root / "build", wanted)
    for folder in folders:
        _refuse_altered(folder)
    identity = _identity(token)
    try:
        config = (
            ClientTrustConfig.from_json(trust_config.read_text(encoding="utf-8"))
            if trust_config
            else ClientTrustConfig.production()
        )
        with SigningContext.from_trust_config(config).signer(identity) as signer:
            bundles = [signer.sign_artifact((folder / METADATA).read_bytes()) for folder in folders]
    except ExpiredIdentity as error:
        raise BuilderError("The identity token has expired: get a new one, and sign again.") from error
    except Exception as error:  # what its clients raise has no common base
        raise BuilderError(f"Sigstore did not sign, nothing was written: {_reason(error)}") from error
    signatures = [folder / SIGNATURE for folder in folders]
    for path, bundle in zip(signatures, bundles, strict=True):
        path.write_text(bundle.to_json() + "\n", encoding="utf-8")
    return signatures, identity.identity


def _refuse_altered(folder: Path) -> None:
    digest = Metadata.read_from_file(folder / METADATA).digest
    try:
        if digest is None:
            raise BuilderError(f"{folder / METADATA} has no digests, so its signature would say nothing.")
        digest.validate(Digest.hash_variant(digest.algorithm, folder))
    except DigestValidationError as error:
        raise BuilderError(
            f"{folder} is not what its {METADATA} says: {error.violations[0]}. Build it again."
        ) from error


def _identity(token: str | None) -> IdentityToken:
    token = token or detect_credential()
    if token is None:
        raise BuilderError(
            "There is no identity to sign with: run this in a CI job that has one (on GitHub it takes the "
            "permission `id-token: write`), or pass --identity-token."
        )
    try:
        return IdentityToken(token)
    except IdentityError as error:
        raise BuilderError(f"--identity-token is no identity for Sigstore: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """What the first cause says, as those around it often say nothing."""
    while error.__cause__ is not None and not str(error):
        error = error.__cause__
    return str(error) or type(error).__name__
