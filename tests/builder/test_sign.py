"""Signatures of variants, by Sigstore's client with a Sigstore on this machine, for its verifier to judge."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sigstore.errors import VerificationError
from sigstore.models import Bundle, TrustedRoot
from sigstore.verify import Verifier, policy

from builder.package import METADATA, SIGNATURE
from tests.builder.tiny_kernel import CPU_VARIANT, PLAIN_PY, PLAIN_VARIANT, TinyKernel
from tests.loopback_sigstore import LoopbackSigstore

WORKFLOW = "https://github.com/tiny/kernel/.github/workflows/release.yml@refs/heads/main"


@pytest.fixture
def sigstore() -> Iterator[LoopbackSigstore]:
    with LoopbackSigstore() as sigstore:
        yield sigstore


@pytest.fixture
def trust(sigstore: LoopbackSigstore, tmp_path: Path) -> list[str]:
    """Arguments of a signer whose identity is the workflow's."""
    config = sigstore.write_trust_config(tmp_path / "config.json")
    return ["--trust-config", str(config), "--identity-token", sigstore.token(WORKFLOW)]


@pytest.fixture(autouse=True)
def no_ambient_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GITHUB_ACTIONS", "GITLAB_CI", "CIRCLECI", "BUILDKITE"):
        monkeypatch.delenv(name, raising=False)


def signature(folder: Path) -> Bundle:
    return Bundle.from_json((folder / SIGNATURE).read_text())


def verifier(sigstore: LoopbackSigstore, tmp_path: Path) -> Verifier:
    root = sigstore.write_trusted_root(tmp_path / "root.json")
    return Verifier(trusted_root=TrustedRoot.from_file(str(root)))


def test_the_identity_and_the_metadata_are_signed(
    built: TinyKernel, sigstore: LoopbackSigstore, trust: list[str], tmp_path: Path
) -> None:
    result = built.run("sign", *trust)
    assert result.exit_code == 0, result.output
    assert f"signed as {WORKFLOW}" in result.output
    folder, judge = built.variant(), verifier(sigstore, tmp_path)
    content, bundle = (folder / METADATA).read_bytes(), signature(folder)
    judge.verify_artifact(content, bundle, policy.Identity(identity=WORKFLOW, issuer=sigstore.url))
    with pytest.raises(VerificationError, match="SANs do not match"):
        judge.verify_artifact(content, bundle, policy.Identity(identity="https://x/y", issuer=sigstore.url))
    with pytest.raises(VerificationError, match="digest mismatch"):
        judge.verify_artifact(content + b" ", bundle, policy.Identity(identity=WORKFLOW, issuer=sigstore.url))
    assert len(sigstore.log.entries) == 1


def test_another_sigstore_did_not_sign_it(built: TinyKernel, trust: list[str], tmp_path: Path) -> None:
    assert built.run("sign", *trust).exit_code == 0
    with LoopbackSigstore() as other:
        judge = verifier(other, tmp_path)
    with pytest.raises(VerificationError):
        judge.verify_artifact(
            (built.variant() / METADATA).read_bytes(), signature(built.variant()), policy.UnsafeNoOp()
        )


def test_chosen_variants(built: TinyKernel, trust: list[str]) -> None:
    built.write("torch-ext/tiny_kernel/plain/__init__.py", PLAIN_PY)
    built.build("--variant", PLAIN_VARIANT)
    assert built.run("sign", "--variant", PLAIN_VARIANT, *trust).exit_code == 0
    assert (built.variant(PLAIN_VARIANT) / SIGNATURE).is_file()
    assert not (built.variant(CPU_VARIANT) / SIGNATURE).exists()
    result = built.run("sign", "--variant", "torch-other", *trust)
    assert result.exit_code == 1
    assert "has no variant torch-other" in result.output


def test_a_signed_variant_is_clean_and_stays_signed(built: TinyKernel, trust: list[str]) -> None:
    assert built.run("sign", *trust).exit_code == 0
    before = (built.variant() / SIGNATURE).read_bytes()
    checked = built.run("check")
    assert checked.exit_code == 0, checked.output
    built.build()
    assert (built.variant() / SIGNATURE).read_bytes() == before


def test_what_changes_loses_its_signature(built: TinyKernel, trust: list[str]) -> None:
    assert built.run("sign", *trust).exit_code == 0
    built.append("torch-ext/tiny_kernel/__init__.py", "# changed\n")
    built.build()
    assert not (built.variant() / SIGNATURE).exists()


def test_an_altered_variant_is_not_signed(built: TinyKernel, trust: list[str]) -> None:
    with (built.variant() / "__init__.py").open("a") as file:
        file.write("# altered\n")
    result = built.run("sign", *trust)
    assert result.exit_code == 1
    assert "is not what its metadata.json says" in result.output
    assert not (built.variant() / SIGNATURE).exists()


@pytest.mark.parametrize(
    ("token", "reason"),
    [(None, "no identity to sign with"), ("not a token", "no identity for Sigstore")],
    ids=["none", "malformed"],
)
def test_without_an_identity(built: TinyKernel, trust: list[str], token: str | None, reason: str) -> None:
    options = trust[:2] if token is None else [*trust[:2], "--identity-token", token]
    result = built.run("sign", *options)
    assert result.exit_code == 1
    assert reason in result.output


def test_an_identity_that_is_not_believed(
    built: TinyKernel, sigstore: LoopbackSigstore, trust: list[str]
) -> None:
    with LoopbackSigstore() as other:
        foreign = other.token(WORKFLOW)
    result = built.run("sign", *trust[:2], "--identity-token", foreign)
    assert result.exit_code == 1
    assert "nothing was written" in result.output
    assert "401" in result.output
    assert not (built.variant() / SIGNATURE).exists()
    assert sigstore.log.entries == []


def test_the_signature_holds_no_path_and_no_time_of_the_build(built: TinyKernel, trust: list[str]) -> None:
    assert built.run("sign", *trust).exit_code == 0
    text = (built.variant() / SIGNATURE).read_text()
    assert json.loads(text)["mediaType"].startswith("application/vnd.dev.sigstore.bundle")
    assert str(built.root) not in text
