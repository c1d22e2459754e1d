"""Processes, threads and builds that meet."""

from __future__ import annotations

from pathlib import Path

import pytest

from flash_rwkv import LoaderError, get_kernel
from flash_rwkv.lockfile import Lock
from flash_rwkv.provide import provide
from flash_rwkv.store import Source, default_store
from tests.loader.home import Home
from tests.loader.publishing import REPOSITORY, VARIANT, TinyKernel, publish
from tests.loopback_hub import LoopbackHub


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
