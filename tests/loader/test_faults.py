"""`get_kernel` when things go wrong, by accident or on purpose: nothing unverified runs."""

from __future__ import annotations

import hashlib
import json
import os
import py_compile
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flash_rwkv import IntegrityError, LoaderError, NoVariantError, UnavailableError, get_kernel, locking
from flash_rwkv.lockfile import Lock
from flash_rwkv.provide import provide
from flash_rwkv.store import Source, default_store
from tests.loader.home import DEAD, Home
from tests.loader.publishing import FOREIGN, REPOSITORY, VARIANT, TinyKernel, publish, publish_files
from tests.loopback_hub import LoopbackHub

EVIL = b"import builtins\nbuiltins.flash_rwkv_was_hacked = True\ndef whoami(): return 'evil'\nwkv7 = max\n"

WHO = "import flash_rwkv; print(flash_rwkv.get_kernel().whoami())"


@pytest.fixture(autouse=True)
def nothing_evil_ran() -> Iterator[None]:
    import builtins

    yield
    assert not hasattr(builtins, "flash_rwkv_was_hacked")


# Network


def test_no_network_and_nothing_here(pinned: Lock, home: Home) -> None:
    home.connect(DEAD)
    with pytest.raises(UnavailableError) as caught:
        get_kernel()
    for part in (REPOSITORY, pinned.revision, DEAD, "refused", "prefetch --to DIR", "FLASH_RWKV_LOCAL"):
        assert part in str(caught.value)


def test_no_network_but_loaded_before(pinned: Lock, hub: LoopbackHub, home: Home) -> None:
    assert home.run("-c", "import flash_rwkv; flash_rwkv.get_kernel()").returncode == 0
    hub.requests.clear()
    home.connect(DEAD)
    result = home.run("-c", "import flash_rwkv; print(flash_rwkv.get_kernel().whoami())")
    assert result.stdout == "tiny\n", result.stderr
    assert hub.requests == []


def test_offline_mode_is_honoured(pinned: Lock, hub: LoopbackHub, home: Home) -> None:
    result = home.run("-c", WHO, HF_HUB_OFFLINE="1")
    assert "UnavailableError" in result.stderr
    assert "offline mode" in result.stderr
    assert hub.requests == []


def test_hub_down(pinned: Lock, hub: LoopbackHub) -> None:
    hub.faults.status("/kernels/", 503, times=100)
    with pytest.raises(UnavailableError, match="503"):
        get_kernel()


def test_hub_hiccups_are_survived(pinned: Lock, hub: LoopbackHub) -> None:
    hub.faults.status("ops.py", 500)
    hub.faults.truncate("weights.bin", keep=100_000)
    assert get_kernel().whoami() == "tiny"
    resumed = [request for request in hub.requests if "range" in request.headers]
    assert [request.status for request in resumed] == [206]


def test_telemetry_may_be_off(pinned: Lock, hub: LoopbackHub, home: Home) -> None:
    result = home.run("-c", WHO, HF_HUB_DISABLE_TELEMETRY="1", DO_NOT_TRACK="1")
    assert result.stdout == "tiny\n", result.stderr
    assert {request.method for request in hub.requests} == {"GET"}
    assert not [request for request in hub.requests if "telemetry" in request.path]
    assert all("torch" not in request.headers["user-agent"] for request in hub.requests)


def test_offline_mode_needs_no_network(pinned: Lock, hub: LoopbackHub, home: Home) -> None:
    home.fill_cache(pinned)
    hub.requests.clear()
    for _ in ("from the Hugging Face cache", "from the verified copy"):
        result = home.run("-c", WHO, HF_HUB_OFFLINE="1")
        assert result.stdout == "tiny\n", result.stderr
    assert hub.requests == []


def test_through_a_proxy(pinned: Lock, hub: LoopbackHub, home: Home) -> None:
    """The name of the Hub is for the proxy to resolve."""
    result = home.run("-c", WHO, HF_ENDPOINT="http://hub.invalid:8080", HTTP_PROXY=hub.url, NO_PROXY="")
    assert result.stdout == "tiny\n", result.stderr
    assert {request.origin for request in hub.requests} == {"http://hub.invalid:8080"}


def test_proxy_that_is_down(pinned: Lock, hub: LoopbackHub, home: Home) -> None:
    result = home.run("-c", WHO, HTTP_PROXY=DEAD, NO_PROXY="")
    assert "UnavailableError" in result.stderr
    assert "refused" in result.stderr
    assert hub.requests == []


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


# Half a download


def test_missing_file_in_the_cache_is_fetched_alone(pinned: Lock, hub: LoopbackHub, home: Home) -> None:
    home.fill_cache(pinned)
    path = home.cached("weights.bin")
    path.resolve().unlink()  # the link stays, as after a cleanup of blobs
    hub.requests.clear()
    assert get_kernel().whoami() == "tiny"
    assert [request.path.rsplit("/", 1)[1] for request in hub.requests] == ["weights.bin"]


def test_missing_file_in_the_cache_without_network(pinned: Lock, home: Home) -> None:
    home.fill_cache(pinned)
    home.cached("weights.bin").unlink()
    home.connect(DEAD)
    with pytest.raises(UnavailableError, match="refused"):
        get_kernel()


def test_killed_while_downloading(pinned: Lock, hub: LoopbackHub, home: Home) -> None:
    hub.faults.delay("weights.bin", 30)
    process = home.start("-c", "import flash_rwkv; flash_rwkv.get_kernel()")
    while process.poll() is None and not any("ops.py" in request.path for request in hub.requests):
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert process.returncode < 0
    hub.faults.clear()
    assert get_kernel().whoami() == "tiny"


def test_file_missing_from_the_verified_copy(pinned: Lock, home: Home) -> None:
    provide(pinned, VARIANT)
    home.stored("weights.bin").unlink()
    with pytest.raises(IntegrityError, match=r"weights\.bin is missing.*prefetch"):
        get_kernel()


# Tampering


def spoil(path: Path, data: bytes = EVIL) -> None:
    path = path.resolve()
    path.chmod(0o644)
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["__init__.py", "ops.py", "weights.bin", "metadata.json"])
def test_tampered_file_in_the_cache(pinned: Lock, home: Home, name: str) -> None:
    home.fill_cache(pinned)
    spoil(home.cached(name))
    with pytest.raises(IntegrityError) as caught:
        get_kernel()
    expected = pinned.variants[VARIANT][name]
    for part in (str(home.cached(name)), expected.sha256, hashlib.sha256(EVIL).hexdigest(), "prefetch"):
        assert part in str(caught.value)
    assert not list(home.store.glob("*")), "nothing of it was kept"


@pytest.mark.parametrize("name", ["__init__.py", "ops.py", "weights.bin", "metadata.json"])
def test_tampered_verified_copy(pinned: Lock, home: Home, name: str) -> None:
    provide(pinned, VARIANT)
    spoil(home.stored(name))
    with pytest.raises(IntegrityError, match=rf"{name} is not the file that was pinned"):
        get_kernel()


def test_same_size_is_not_enough(pinned: Lock, home: Home) -> None:
    provide(pinned, VARIANT)
    path = home.stored("weights.bin")
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    spoil(path, bytes(data))
    with pytest.raises(IntegrityError, match=r"weights\.bin"):
        get_kernel()


def test_added_file(pinned: Lock, home: Home) -> None:
    provide(pinned, VARIANT)
    (home.stored("ops.py").parent / "layers").mkdir()
    (home.stored("ops.py").parent / "layers" / "__init__.py").write_bytes(EVIL)
    with pytest.raises(IntegrityError, match=r"layers/__init__\.py is not in the lock"):
        get_kernel()


def test_planted_bytecode_does_not_run(pinned: Lock, home: Home, tmp_path: Path) -> None:
    """Python would prefer a compiled file whose time and size match the source's."""
    provide(pinned, VARIANT)
    source = home.stored("ops.py")
    evil = tmp_path / "ops.py"
    evil.write_bytes(EVIL.ljust(source.stat().st_size, b"\n")[: max(len(EVIL), source.stat().st_size)])
    target = source.parent / "__pycache__" / f"ops.{sys.implementation.cache_tag}.pyc"
    py_compile.compile(
        str(evil), cfile=str(target), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    assert get_kernel().whoami() == "tiny"
    assert not target.exists()


def test_corrupted_transfer(pinned: Lock, hub: LoopbackHub) -> None:
    """Length and ETag are right, one bit is not; the client does not notice."""
    hub.faults.corrupt("ops.py")
    with pytest.raises(IntegrityError, match=r"ops\.py"):
        get_kernel()


def test_swapped_between_check_and_import(pinned: Lock, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who changes the shared cache after verification changes nothing that runs."""
    from flash_rwkv import load

    def import_late(folder: Path, *arguments: object) -> object:
        spoil(home.cached("ops.py"))
        return real(folder, *arguments)

    home.fill_cache(pinned)
    real = load.import_variant
    monkeypatch.setattr(load, "import_variant", import_late)
    assert get_kernel().whoami() == "tiny"


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


# Names that lead elsewhere


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


# Links


@pytest.mark.parametrize("name", ["__init__.py", "weights.bin"])
def test_swapped_symlink_in_the_cache(pinned: Lock, home: Home, tmp_path: Path, name: str) -> None:
    """The Hugging Face cache is made of links, and they may lead anywhere."""
    home.fill_cache(pinned)
    (tmp_path / "evil").write_bytes(EVIL)
    link = home.cached(name)
    link.unlink()
    link.symlink_to(tmp_path / "evil")
    with pytest.raises(IntegrityError, match=f"{name} is not the file that was pinned"):
        get_kernel()


def test_symlink_in_the_cache_that_leads_round(pinned: Lock, hub: LoopbackHub, home: Home) -> None:
    home.fill_cache(pinned)
    link = home.cached("ops.py")
    link.unlink()
    link.symlink_to(link)
    assert get_kernel().whoami() == "tiny", "it counts as missing"


@pytest.mark.parametrize("place", ["ops.py", "folder of the variant", "folder of its digest"])
def test_symlink_in_the_verified_copy(pinned: Lock, home: Home, tmp_path: Path, place: str) -> None:
    """Where it leads could change after the check, so it does not help that all is well there now."""
    variant = provide(pinned, VARIANT)
    path = {"ops.py": variant / "ops.py", "folder of the variant": variant}.get(place, variant.parent)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match="is a link or a device"):
        get_kernel()


def test_linked_folder_that_would_be_imported(pinned: Lock, home: Home, tmp_path: Path) -> None:
    """A package comes before the module of its name."""
    provide(pinned, VARIANT)
    (tmp_path / "layers").mkdir()
    (tmp_path / "layers" / "__init__.py").write_bytes(EVIL)
    (home.stored("ops.py").parent / "layers").symlink_to(tmp_path / "layers")
    with pytest.raises(IntegrityError, match="layers is not in the lock"):
        get_kernel()


def test_pipe_in_the_verified_copy(pinned: Lock, home: Home) -> None:
    """Reading it would wait for ever."""
    provide(pinned, VARIANT)
    path = home.stored("ops.py")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(IntegrityError, match="is a link or a device"):
        get_kernel()


# Redirection


def test_repository_cannot_redirect(hub: LoopbackHub, home: Home) -> None:
    evil = publish(hub, {VARIANT: TinyKernel(extra={"ops.py": EVIL})}, repository="evil/kernel")
    publish(hub, {VARIANT: TinyKernel()})
    status = f'kind = "redirect"\ndestination = "evil/kernel"\nrevision = "{evil}"\n'
    publish_files(hub, {"kernel-status.toml": status.encode()})
    home.pin(hub)
    assert get_kernel().whoami() == "tiny"
    assert not [request for request in hub.requests if "evil" in request.path]


def test_kernel_cannot_bring_another_kernel(hub: LoopbackHub, home: Home) -> None:
    publish(hub, {VARIANT: TinyKernel(extra={"ops.py": EVIL})}, repository="evil/kernel")
    depends = {"kernel-depends": [{"repo-id": "evil/kernel", "version": 1}]}
    publish(hub, {VARIANT: TinyKernel(extra_metadata=depends)})
    home.pin(hub)
    with pytest.raises(LoaderError, match="evil/kernel"):
        get_kernel()
    assert not [request for request in hub.requests if "evil" in request.path]


def test_configuration_beside_the_model_is_not_read(pinned: Lock, home: Home, tmp_path: Path) -> None:
    """A model's folder may hold anything under any name: only the environment and the package decide."""
    evil = TinyKernel(extra={"ops.py": EVIL}).write(tmp_path / "model" / "build" / VARIANT)
    shutil.copytree(evil.parent, tmp_path / "model" / "flash-rwkv" / "flash-rwkv" / "build")
    text = pinned.dumps().replace(REPOSITORY, "evil/kernel")
    for name in ("flash_rwkv.lock.json", "kernels.lock", "config.json", "kernel-status.toml"):
        (tmp_path / "model" / name).write_text(text)
    home.monkeypatch.chdir(tmp_path / "model")
    assert get_kernel().whoami() == "tiny"


@pytest.mark.parametrize("value", [f"{REPOSITORY}=%s", "broken:/a/path"])
def test_overrides_of_the_kernels_library_are_ignored(
    pinned: Lock, home: Home, tmp_path: Path, value: str
) -> None:
    evil = TinyKernel(extra={"ops.py": EVIL}).write(tmp_path / "evil" / "build" / VARIANT)
    home.set("LOCAL_KERNELS", value.replace("%s", str(evil.parent.parent)))
    assert get_kernel().whoami() == "tiny"


# Machines and processes


def test_no_variant_for_this_machine(hub: LoopbackHub, home: Home) -> None:
    names = [
        FOREIGN,
        "torch-stable-abi299-cpu-x86_64-linux",
        "torch27-cxx11-cu126-x86_64-linux",
        "torch-metal",
        "odd",
    ]
    publish(hub, {name: TinyKernel() for name in names})
    home.pin(hub)
    with pytest.raises(NoVariantError) as caught:
        get_kernel()
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + len(names)
    for name, reason in zip(names, ("riscv64", "too new", "27", "metal", "Unknown framework"), strict=True):
        (line,) = [line for line in lines if line.strip().startswith(f"{name}:")]
        assert reason in line or "does not match" in line
    assert hub.requests == []


def test_two_processes_at_once(pinned: Lock, hub: LoopbackHub, home: Home) -> None:
    """Both start downloading before either has a file."""
    hub.faults.delay("weights.bin", 1.0, times=2)
    code = "import flash_rwkv; k = flash_rwkv.get_kernel(); print(k.whoami(), k.__file__)"
    processes = [home.start("-c", code) for _ in range(2)]
    results = [process.communicate(timeout=120) for process in processes]
    assert [out for out, _ in results] == [f"tiny {home.stored('__init__.py')}\n"] * 2, results
    assert not list(home.store.glob(".incoming-*"))


def test_two_writers_of_one_copy(pinned: Lock, home: Home) -> None:
    """The one that comes second finds the copy there and verifies it."""
    home.fill_cache(pinned)
    first = provide(pinned, VARIANT)
    sources = {name: Source.of(home.cached(name)) for name in pinned.variants[VARIANT]}
    assert default_store().add(VARIANT, pinned.variants[VARIANT], sources) == first


def test_threads_get_one_module(pinned: Lock) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        modules = set(pool.map(lambda _: get_kernel(), range(16)))
    assert len(modules) == 1


def test_two_builds_of_one_id(hub: LoopbackHub, home: Home) -> None:
    """Their operators would collide in Torch: the second is refused in words."""
    first = TinyKernel(text="one")
    publish(hub, {VARIANT: first})
    home.pin(hub)
    assert get_kernel().whoami() == "one"
    other = publish(hub, {VARIANT: TinyKernel(text="two", build_id=first.build_id)}, "v2")
    with pytest.raises(LoaderError, match=f"{first.build_id}.*new process"):
        get_kernel(REPOSITORY, revision=other)
    assert get_kernel().whoami() == "one"


def test_loaded_elsewhere_already(pinned: Lock, tiny: TinyKernel, tmp_path: Path) -> None:
    """The kernels library loaded the same build from another folder: operators are registered once."""
    from kernels import get_local_kernel

    theirs = get_local_kernel(tiny.write(tmp_path / "build" / VARIANT).parent)
    assert get_kernel() is theirs


def test_failed_import_can_be_tried_again(hub: LoopbackHub, home: Home) -> None:
    broken = (
        b"import os\nif 'BREAK' in os.environ: raise ImportError('broken')\nwkv7 = whoami = lambda: 'whole'\n"
    )
    publish(hub, {VARIANT: TinyKernel(extra={"ops.py": broken})})
    home.pin(hub)
    home.set("BREAK", 1)
    with pytest.raises(ImportError, match="broken"):
        get_kernel()
    home.monkeypatch.delenv("BREAK")
    assert get_kernel().whoami() == "whole"
