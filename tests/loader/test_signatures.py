"""Kernels that a given identity must have signed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sigstore.models import ClientTrustConfig
from sigstore.oidc import IdentityToken
from sigstore.sign import SigningContext

from flash_rwkv import IntegrityError, LoaderError, cli, get_kernel
from flash_rwkv.hub import SIGNATURE
from tests.loader.home import Home
from tests.loader.publishing import REPOSITORY, VARIANT, TinyKernel, publish_files
from tests.loopback_hub import LoopbackHub
from tests.loopback_sigstore import LoopbackSigstore

WORKFLOW = "https://github.com/flash-rwkv/flash-rwkv/.github/workflows/release.yml@refs/heads/main"


@pytest.fixture
def sigstore(home: Home, tmp_path: Path) -> Iterator[LoopbackSigstore]:
    """Trusted by this user, who wants what the workflow has signed."""
    with LoopbackSigstore() as sigstore:
        home.set("FLASH_RWKV_SIGSTORE_ROOT", sigstore.write_trusted_root(tmp_path / "root.json"))
        home.set("FLASH_RWKV_SIGNER", f"{WORKFLOW} {sigstore.url}")
        yield sigstore


def signed(sigstore: LoopbackSigstore, kernel: TinyKernel, identity: str, folder: Path) -> dict[str, bytes]:
    """A kernel's files and a signature."""
    config = sigstore.write_trust_config(folder / "config.json")
    context = SigningContext.from_trust_config(ClientTrustConfig.from_json(config.read_text()))
    files = kernel.files()
    with context.signer(IdentityToken(sigstore.token(identity))) as signer:
        bundle = signer.sign_artifact(files["metadata.json"])
    return {**files, SIGNATURE: bundle.to_json().encode()}


def publish(hub: LoopbackHub, files: dict[str, bytes]) -> str:
    return publish_files(hub, {f"build/{VARIANT}/{name}": data for name, data in files.items()})


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_signed_by_whom_it_must_be(
    sigstore: LoopbackSigstore, hub: LoopbackHub, home: Home, tiny: TinyKernel, tmp_path: Path
) -> None:
    publish(hub, signed(sigstore, tiny, WORKFLOW, tmp_path))
    home.pin(hub)
    assert get_kernel().whoami() == "tiny"


def test_also_at_a_commit_that_no_lock_pins(
    sigstore: LoopbackSigstore, hub: LoopbackHub, home: Home, tiny: TinyKernel, tmp_path: Path
) -> None:
    commit = publish(hub, signed(sigstore, tiny, WORKFLOW, tmp_path))
    home.connect(hub.url)
    assert get_kernel(REPOSITORY, revision=commit).whoami() == "tiny"


def test_not_signed(sigstore: LoopbackSigstore, hub: LoopbackHub, home: Home, tiny: TinyKernel) -> None:
    publish(hub, tiny.files())
    home.pin(hub)
    with pytest.raises(IntegrityError, match=f"is not signed, expected a signature of {WORKFLOW}"):
        get_kernel()


def test_signed_by_somebody_else(
    sigstore: LoopbackSigstore, hub: LoopbackHub, home: Home, tiny: TinyKernel, tmp_path: Path
) -> None:
    publish(hub, signed(sigstore, tiny, "https://github.com/somebody/else", tmp_path))
    home.pin(hub)
    with pytest.raises(IntegrityError, match=r"is not signed by .*SANs do not match"):
        get_kernel()


def test_vouched_for_by_somebody_else(
    sigstore: LoopbackSigstore, hub: LoopbackHub, home: Home, tiny: TinyKernel, tmp_path: Path
) -> None:
    publish(hub, signed(sigstore, tiny, WORKFLOW, tmp_path))
    home.pin(hub)
    home.set("FLASH_RWKV_SIGNER", WORKFLOW)  # of GitHub
    with pytest.raises(IntegrityError, match=r"token\.actions\.githubusercontent\.com vouches"):
        get_kernel()


def test_signed_with_another_sigstore(
    sigstore: LoopbackSigstore, hub: LoopbackHub, home: Home, tiny: TinyKernel, tmp_path: Path
) -> None:
    with LoopbackSigstore() as other:
        publish(hub, signed(other, tiny, WORKFLOW, tmp_path))
        home.set("FLASH_RWKV_SIGNER", f"{WORKFLOW} {other.url}")
    home.pin(hub)
    with pytest.raises(IntegrityError, match="is not signed by"):
        get_kernel()


def test_signature_of_another_kernel(
    sigstore: LoopbackSigstore, hub: LoopbackHub, home: Home, tiny: TinyKernel, tmp_path: Path
) -> None:
    other = signed(sigstore, TinyKernel(text="other"), WORKFLOW, tmp_path)
    publish(hub, {**tiny.files(), SIGNATURE: other[SIGNATURE]})
    home.pin(hub)
    with pytest.raises(IntegrityError, match=r"is not signed by .*digest mismatch"):
        get_kernel()


def test_no_signature_at_all_in_its_file(
    sigstore: LoopbackSigstore, hub: LoopbackHub, home: Home, tiny: TinyKernel
) -> None:
    publish(hub, {**tiny.files(), SIGNATURE: b"{}"})
    home.pin(hub)
    with pytest.raises(IntegrityError, match="is not signed by"):
        get_kernel()


def test_a_local_build(sigstore: LoopbackSigstore, home: Home, tiny: TinyKernel, tmp_path: Path) -> None:
    """Not verified against any lock, but against what was signed."""
    files = signed(sigstore, tiny, WORKFLOW, tmp_path)
    home.set("FLASH_RWKV_LOCAL", write(tmp_path / VARIANT, files))
    assert get_kernel().whoami() == "tiny"


def test_a_local_build_that_was_altered(
    sigstore: LoopbackSigstore, home: Home, tiny: TinyKernel, tmp_path: Path
) -> None:
    files = signed(sigstore, tiny, WORKFLOW, tmp_path)
    altered = {**files, "ops.py": files["ops.py"].replace(b"tiny", b"evil")}
    home.set("FLASH_RWKV_LOCAL", write(tmp_path / VARIANT, altered))
    with pytest.raises(IntegrityError, match=r"ops\.py is not what was signed"):
        get_kernel()


def test_prefetch_refuses_too(
    sigstore: LoopbackSigstore, hub: LoopbackHub, home: Home, tiny: TinyKernel, capsys: pytest.CaptureFixture
) -> None:
    publish(hub, tiny.files())
    home.pin(hub)
    assert cli.main(["prefetch"]) == 1
    assert "is not signed" in capsys.readouterr().err


def test_settings_that_lead_nowhere(
    sigstore: LoopbackSigstore, hub: LoopbackHub, home: Home, tiny: TinyKernel, tmp_path: Path
) -> None:
    publish(hub, signed(sigstore, tiny, WORKFLOW, tmp_path))
    home.pin(hub)
    home.set("FLASH_RWKV_SIGSTORE_ROOT", tmp_path / "nowhere.json")
    with pytest.raises(LoaderError, match="cannot read whom to trust from FLASH_RWKV_SIGSTORE_ROOT="):
        get_kernel()
    home.set("FLASH_RWKV_SIGNER", "one two three")
    with pytest.raises(LoaderError, match="FLASH_RWKV_SIGNER must be"):
        get_kernel()
