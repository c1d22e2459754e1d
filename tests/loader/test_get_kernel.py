"""`get_kernel` when all is well: where it looks, in which order, and what it gives."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from flash_rwkv import LoaderError, NotPinnedError, get_kernel
from flash_rwkv.lockfile import Lock
from tests.loader.home import DEAD, Home
from tests.loader.publishing import FOREIGN, REPOSITORY, VARIANT, TinyKernel, publish
from tests.loopback_hub import LoopbackHub


def test_loads_from_the_hub_only_what_fits(hub: LoopbackHub, home: Home) -> None:
    publish(hub, {VARIANT: TinyKernel(), FOREIGN: TinyKernel()})
    home.pin(hub)
    assert get_kernel("flash-rwkv").whoami() == "tiny"
    paths = [request.path for request in hub.requests]
    assert len([path for path in paths if VARIANT in path]) >= 5
    assert not [path for path in paths if FOREIGN in path]


def test_runs_the_verified_copy(pinned: Lock, home: Home) -> None:
    home.monkeypatch.setattr(sys, "dont_write_bytecode", False)
    kernel = get_kernel()
    assert Path(kernel.__file__) == home.stored("__init__.py")
    assert not list(home.store.rglob("__pycache__"))


def test_second_load_is_the_same_module_and_asks_nobody(pinned: Lock, hub: LoopbackHub) -> None:
    kernel = get_kernel()
    hub.requests.clear()
    assert get_kernel("flash-rwkv") is kernel
    assert get_kernel(REPOSITORY) is kernel
    assert get_kernel(REPOSITORY, revision=pinned.revision) is kernel
    assert get_kernel(version=1) is kernel
    assert get_kernel(backend="cpu") is kernel
    assert hub.requests == []


def test_kernels_library_knows_what_was_loaded(pinned: Lock) -> None:
    from kernels import get_loaded_kernels

    kernel = get_kernel()
    (loaded,) = [loaded for loaded in get_loaded_kernels() if loaded.module is kernel]
    assert loaded.metadata.id == kernel.__name__
    assert sys.modules[kernel.__name__] is kernel


def test_two_versions_in_one_process(hub: LoopbackHub, home: Home) -> None:
    first = publish(hub, {VARIANT: TinyKernel(text="one", version=1)}, "v1")
    second = publish(hub, {VARIANT: TinyKernel(text="two", version=2)}, "v2")
    home.pin(hub, "v1")
    one, two = get_kernel(), get_kernel(REPOSITORY, revision=second)
    assert (one.whoami(), two.whoami()) == ("one", "two")
    home.pin(hub, "v2")
    assert get_kernel(version=2) is two
    assert get_kernel("flash-rwkv", revision=first) is one


def test_unpublished_lock_is_refused_but_a_revision_loads(hub: LoopbackHub, home: Home) -> None:
    commit = publish(hub, {VARIANT: TinyKernel()})
    home.connect(hub.url)
    empty = Lock(REPOSITORY, None, None, {}, "")
    (home.folder / "empty.json").write_text(empty.dumps())
    home.set("FLASH_RWKV_LOCK", home.folder / "empty.json")
    with pytest.raises(NotPinnedError, match="no pinned release"):
        get_kernel()
    assert hub.requests[-1].method == "POST", "nothing was asked of the Hub since publishing"
    assert get_kernel("flash-rwkv", revision=commit).whoami() == "tiny"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "rwkv"}, "owner/name"),
        ({"name": "a/b/c"}, "owner/name"),
        ({"name": None}, "owner/name"),
        ({"name": "other/kernel"}, "give revision= with a commit sha"),
        ({"revision": "main"}, "full commit sha"),
        ({"revision": "v1"}, "flash-rwkv lock"),
        ({"revision": "abc1234"}, "full commit sha"),
        ({"revision": "a" * 40, "version": 1}, "not both"),
        ({"version": 7}, "pins version 1"),
        ({"backend": "tpu"}, "tpu"),
    ],
)
def test_bad_arguments_are_named(pinned: Lock, hub: LoopbackHub, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_kernel(**arguments)
    assert hub.requests == []


def test_variants_without_digests_are_not_loaded(hub: LoopbackHub, home: Home) -> None:
    commit = publish(hub, {VARIANT: TinyKernel(digests=False)})
    home.connect(hub.url)
    with pytest.raises(LoaderError, match="no digests"):
        get_kernel(REPOSITORY, revision=commit)


# A folder given by hand


@pytest.mark.parametrize("place", ["build/" + VARIANT, VARIANT, "a:b c/build/" + VARIANT])
def test_local_folder_comes_first(
    hub: LoopbackHub, home: Home, pinned: Lock, tmp_path: Path, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    local = TinyKernel(text="local").write(tmp_path / "mine" / place)
    root = local.parent.parent if "build" in place else local.parent
    home.set("FLASH_RWKV_LOCAL", root)
    with caplog.at_level(logging.WARNING, "flash_rwkv"):
        kernel = get_kernel()
    assert kernel.whoami() == "local"
    assert Path(kernel.__file__).parent == local
    assert "unverified" in caplog.text
    assert hub.requests == []
    assert get_kernel(REPOSITORY, revision="b" * 40) is kernel, "any revision of the pinned repository"


def test_local_folder_may_be_one_variant_of_any_name(home: Home, pinned: Lock, tmp_path: Path) -> None:
    home.set("FLASH_RWKV_LOCAL", TinyKernel(text="direct").write(tmp_path / "my: variant"))
    assert get_kernel().whoami() == "direct"


def test_local_folder_without_builds_is_named(home: Home, pinned: Lock, tmp_path: Path) -> None:
    home.set("FLASH_RWKV_LOCAL", tmp_path / "nowhere")
    with pytest.raises(LoaderError, match=r"FLASH_RWKV_LOCAL=.*nowhere has no build variant"):
        get_kernel()


def test_local_folder_does_not_stand_in_for_other_repositories(
    hub: LoopbackHub, home: Home, pinned: Lock, tmp_path: Path
) -> None:
    home.set("FLASH_RWKV_LOCAL", TinyKernel(text="local").write(tmp_path / "mine" / VARIANT).parent)
    commit = publish(hub, {VARIANT: TinyKernel(text="theirs")}, repository="other/kernel")
    assert get_kernel("other/kernel", revision=commit).whoami() == "theirs"


# The caches


def test_hugging_face_cache_needs_no_network(pinned: Lock, hub: LoopbackHub, home: Home) -> None:
    """Filled by the kernels library, say; the verified copy is not there yet."""
    home.fill_cache(pinned)
    hub.requests.clear()
    assert get_kernel().whoami() == "tiny"
    assert hub.requests == []


def test_verified_copy_is_enough(pinned: Lock, hub: LoopbackHub, home: Home) -> None:
    from flash_rwkv.provide import provide

    provide(pinned, VARIANT)
    home.connect(DEAD)
    assert get_kernel().whoami() == "tiny"


def test_store_that_cannot_be_written(
    pinned: Lock, home: Home, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    home.set("FLASH_RWKV_CACHE", tmp_path / "file" / "store")
    with caplog.at_level(logging.WARNING, "flash_rwkv"):
        assert get_kernel().whoami() == "tiny"
    assert "temporary copy" in caplog.text
