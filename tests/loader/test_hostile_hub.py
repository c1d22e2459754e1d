"""A Hub or a mirror that serves something else, or names that lead elsewhere: nothing unverified runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from flash_rwkv import IntegrityError, LoaderError, UnavailableError, get_kernel, locking
from flash_rwkv.lockfile import Lock
from tests.loader.evil import EVIL, spoil
from tests.loader.home import DEAD, Home
from tests.loader.publishing import REPOSITORY, VARIANT, TinyKernel, publish, publish_files
from tests.loopback_hub import LoopbackHub


def test_sha_that_does_not_exist(hub: LoopbackHub, home: Home, pinned: Lock) -> None:
    wrong = Lock(REPOSITORY, "e" * 40, 1, pinned.variants, "")
    (home.folder / "wrong.json").write_text(wrong.dumps())
    home.set("FLASH_RWKV_LOCK", home.folder / "wrong.json")
    with pytest.raises(UnavailableError, match=r"e{40}.*no such revision"):
        get_kernel()


def test_repository_that_does_not_exist(pinned: Lock) -> None:
    with pytest.raises(UnavailableError, match="no such repository"):
        get_kernel("no/body", revision="e" * 40)


def test_sha_of_another_commit(hub: LoopbackHub, home: Home, pinned: Lock) -> None:
    """The lock's digests with the sha of other content."""
    other = publish(hub, {VARIANT: TinyKernel(text="other")})
    (home.folder / "mixed.json").write_text(Lock(REPOSITORY, other, 1, pinned.variants, "").dumps())
    home.set("FLASH_RWKV_LOCK", home.folder / "mixed.json")
    with pytest.raises(
        IntegrityError, match=r"(ops\.py|metadata\.json) from .* is not the file that was pinned"
    ):
        get_kernel()


def test_replayed_older_release(hub: LoopbackHub, home: Home) -> None:
    """The Hub, or who stands before it, keeps giving out a release with a hole that the pinned one closed."""
    old = publish(hub, {VARIANT: TinyKernel(extra={"ops.py": EVIL})})
    new = publish(hub, {VARIANT: TinyKernel()})
    home.pin(hub)
    hub.faults.replace(new, old)
    with pytest.raises(IntegrityError, match="is not the file that was pinned"):
        get_kernel()


def test_hub_that_serves_another_commit(hub: LoopbackHub, home: Home) -> None:
    """Of a revision that no lock pins: it says so itself."""
    other = publish(hub, {VARIANT: TinyKernel(extra={"ops.py": EVIL})})
    wanted = publish(hub, {VARIANT: TinyKernel()})
    home.connect(hub.url)
    hub.faults.replace(wanted, other)
    with pytest.raises(IntegrityError, match=f"it is of commit '{other}', not of {wanted}"):
        get_kernel(REPOSITORY, revision=wanted)


def test_file_at_another_host_does_not_get_the_token(
    pinned: Lock, hub: LoopbackHub, tiny: TinyKernel, home: Home, tmp_path: Path
) -> None:
    """The Hub keeps large files elsewhere."""
    home.set("HF_TOKEN", "hf_secret")
    with LoopbackHub(tmp_path / "elsewhere") as elsewhere:
        elsewhere.faults.answer("/blob", tiny.files()["weights.bin"])
        hub.faults.status("weights.bin", 302, location=f"{elsewhere.url}/blob")
        assert get_kernel().whoami() == "tiny"
    (request,) = elsewhere.requests
    assert "authorization" not in request.headers
    assert all(request.headers["authorization"] == "Bearer hf_secret" for request in hub.requests)


def test_corrupted_transfer(pinned: Lock, hub: LoopbackHub) -> None:
    """Length and ETag are right, one bit is not; the client does not notice."""
    hub.faults.corrupt("ops.py")
    with pytest.raises(IntegrityError, match=r"ops\.py"):
        get_kernel()


def test_unpinned_revision_is_pinned_by_its_first_use(hub: LoopbackHub, home: Home) -> None:
    commit = publish(hub, {VARIANT: TinyKernel(text="first")})
    home.connect(hub.url)
    assert get_kernel("flash-rwkv/flash-rwkv", revision=commit).whoami() == "first"
    home.connect(DEAD)
    spoil(home.stored("ops.py"))
    code = f"import flash_rwkv; flash_rwkv.get_kernel('flash-rwkv/flash-rwkv', revision='{commit}')"
    result = home.run("-c", code)
    assert "IntegrityError" in result.stderr
    assert "ops.py" in result.stderr


def test_first_use_of_an_unpinned_revision_does_not_trust_the_cache(hub: LoopbackHub, home: Home) -> None:
    """Someone put a kernel with digests that fit into a shared cache, under the honest commit."""
    honest = b"def whoami(): return 'honest'\nwkv7 = max\n".ljust(len(EVIL), b"\n")
    tiny = TinyKernel(extra={"ops.py": honest})
    commit = publish(hub, {VARIANT: tiny})
    evil = TinyKernel(build_id=tiny.build_id, extra={"ops.py": EVIL}).files()
    home.connect(hub.url)
    home.fill_cache(Lock(REPOSITORY, commit, 1, {}, ""))
    for name in ("ops.py", "metadata.json"):
        spoil(home.cached(name), evil[name])
    with pytest.raises(IntegrityError, match=r"ops\.py"):
        get_kernel(REPOSITORY, revision=commit)


def test_unpinned_revision_must_match_its_own_metadata(hub: LoopbackHub, home: Home) -> None:
    publish(hub, {VARIANT: TinyKernel()})
    commit = publish_files(hub, {f"build/{VARIANT}/ops.py": EVIL})
    home.connect(hub.url)
    with pytest.raises(IntegrityError, match=r"ops\.py"):
        get_kernel(REPOSITORY, revision=commit)


def test_unpinned_revision_with_files_beside_its_digests(hub: LoopbackHub, home: Home) -> None:
    publish(hub, {VARIANT: TinyKernel()})
    commit = publish_files(hub, {f"build/{VARIANT}/more.py": EVIL})
    home.connect(hub.url)
    with pytest.raises(IntegrityError, match=r"disagree on more\.py"):
        get_kernel(REPOSITORY, revision=commit)


@pytest.mark.parametrize(
    "path",
    [
        "build/../../../evil.py",
        "build/../evil/metadata.json",
        f"build/{VARIANT}/../../../evil.py",
        f"build/{VARIANT}//etc/evil.py",
        f"build/{VARIANT}/C:/evil.py",
        f"build/{VARIANT}/..\\evil.py",
        f"build/{VARIANT}/nul.py",
        f"build/{VARIANT}/\0.py",
    ],
)
def test_listing_of_paths_that_lead_outside(hub: LoopbackHub, home: Home, tmp_path: Path, path: str) -> None:
    commit = publish(hub, {VARIANT: TinyKernel()})
    home.connect(hub.url)
    before = sorted(tmp_path.rglob("*"))
    files = [f"build/{VARIANT}/metadata.json", path, f"{path.rpartition('/')[0]}/metadata.json"]
    listing = [{"type": "file", "path": name, "size": 1} for name in files]
    hub.faults.answer("/tree/", json.dumps(listing).encode())
    with pytest.raises(IntegrityError, match="not allowed"):
        get_kernel(REPOSITORY, revision=commit)
    with pytest.raises(IntegrityError, match="not allowed"):
        locking.pin(REPOSITORY, commit)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["../evil.py", "/etc/evil.py", "a/../../evil.py", "..\\evil.py", "CON.py"])
def test_metadata_with_paths_that_lead_outside(hub: LoopbackHub, home: Home, name: str) -> None:
    digest = {"algorithm": "sha256", "files": {name: "AAAA"}}
    commit = publish(hub, {VARIANT: TinyKernel(extra_metadata={"digest": digest})})
    home.connect(hub.url)
    with pytest.raises(IntegrityError, match="not allowed in a build variant"):
        get_kernel(REPOSITORY, revision=commit)


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "json"},
        {"id": "torch"},
        {"id": "_flash_rwkv_"},
        {"id": "_flash_rwkv_/../../evil"},
        {"id": "_other_cpu_123"},
        {"id": 7},
        {"id": None},
        {"name": "other"},
        {"name": ["flash-rwkv"]},
    ],
)
def test_metadata_with_another_name(hub: LoopbackHub, home: Home, fields: dict) -> None:
    """Its id becomes a module in Python and a namespace in Torch, and must not be somebody else's."""
    publish(hub, {VARIANT: TinyKernel(extra_metadata=fields, extra={"ops.py": EVIL})})
    home.pin(hub)
    before = sys.modules["json"]
    with pytest.raises(LoaderError, match="is not the metadata of a kernel"):
        get_kernel()
    assert sys.modules["json"] is before


def test_headers_that_lead_outside(pinned: Lock, hub: LoopbackHub, home: Home, tmp_path: Path) -> None:
    """Clients that name files in their cache by what a server says can be made to write anywhere."""
    body = TinyKernel(text="tiny").files()["ops.py"]
    headers = {"ETag": '"../../../../evil"', "X_Repo_Commit": "../../evil"}
    disposition = {"Content_Disposition": "attachment; filename=../../evil"}
    hub.faults.answer("ops.py", body, **headers, **disposition)
    assert get_kernel().whoami() == "tiny"
    assert not list(tmp_path.rglob("*evil*"))
