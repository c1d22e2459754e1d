"""Files altered, added or linked in the cache and in the verified copy: nothing unverified runs."""

from __future__ import annotations

import hashlib
import os
import py_compile
import sys
from pathlib import Path

import pytest

from flash_rwkv import IntegrityError, get_kernel
from flash_rwkv.lockfile import Lock
from flash_rwkv.provide import provide
from tests.loader.evil import EVIL, spoil
from tests.loader.home import Home
from tests.loader.publishing import VARIANT
from tests.loopback_hub import LoopbackHub


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
