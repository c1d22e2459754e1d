"""Disks that are full, read-only, far away or oddly named, and clocks that are wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flash_rwkv import LoaderError, get_kernel
from flash_rwkv.lockfile import Lock
from flash_rwkv.provide import provide
from flash_rwkv.store import default_root, default_store
from tests.loader.home import Home
from tests.loader.namespaces import unshared
from tests.loader.publishing import VARIANT, TinyKernel, publish
from tests.loopback_hub import LoopbackHub

WHO = "import flash_rwkv; kernel = flash_rwkv.get_kernel(); print(kernel.whoami(), kernel.__file__)"
YEAR = 365 * 24 * 60 * 60


def shell(script: str, *kinds: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script in new namespaces; `$PYTHON` is this Python, `$WHO` loads the kernel and says which."""
    return subprocess.run(
        [*unshared(*kinds), "sh", "-euc", script],
        env={**os.environ, "PYTHON": sys.executable, "WHO": WHO, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


# Full


def test_full_disk(pinned: Lock, home: Home) -> None:
    """Of the verified copies alone: the process takes a temporary one and leaves nothing half-written."""
    home.store.mkdir()
    script = 'mount -t tmpfs -o size=100k tmpfs "$STORE"; "$PYTHON" -c "$WHO"; ls -A "$STORE"'
    result = shell(script, "mount", STORE=str(home.store))
    assert result.returncode == 0, result.stderr
    assert "No space left on device" in result.stderr
    assert "temporary copy" in result.stderr
    (line,) = result.stdout.splitlines()
    assert line.startswith("tiny ")
    assert str(home.store) not in line


def test_full_disk_and_nowhere_else(pinned: Lock, home: Home) -> None:
    """Then a sentence with the number of bytes, and once there is room a kernel."""
    home.store.mkdir()
    script = (
        'mount -t tmpfs -o size=100k tmpfs "$STORE"; mkdir "$TMPDIR"; "$PYTHON" -c "$WHO" || echo refused; '
        'ls -A "$STORE"; mount -o remount,size=9m "$STORE"; "$PYTHON" -c "$WHO"'
    )
    result = shell(script, "mount", STORE=str(home.store), TMPDIR=str(home.store / "temporary"))
    size = sum(entry.size for entry in pinned.variants[VARIANT].values())
    last = [line for line in result.stderr.splitlines() if "LoaderError" in line][-1]
    for part in ("No space left on device", str(home.store), f"{size:,} bytes", "FLASH_RWKV_CACHE"):
        assert part in last
    refused, left, loaded = result.stdout.splitlines()
    assert (refused, left) == ("refused", "temporary")
    assert loaded.startswith(f"tiny {home.store}")


def test_quota(pinned: Lock, home: Home) -> None:
    """Files may not grow as long as the kernel's: the same as a full disk, where nothing can be mounted."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
    result = home.run("-c", limit + WHO)
    assert "LoaderError" in result.stderr.splitlines()[-1]
    assert "File too large" in result.stderr
    assert not list(home.store.iterdir())


# Read-only

READ_ONLY = 'mount --bind "$DIR" "$DIR"; mount -o remount,bind,ro "$DIR"; '


def test_read_only_verified_copies(pinned: Lock, home: Home) -> None:
    """What an administrator put there loads from there."""
    folder = provide(pinned, VARIANT)
    result = shell(READ_ONLY + '"$PYTHON" -c "$WHO"', "mount", DIR=str(home.store))
    assert result.stdout == f"tiny {folder / '__init__.py'}\n", result.stderr
    assert result.stderr == ""


def test_read_only_and_empty(pinned: Lock, home: Home) -> None:
    home.store.mkdir()
    result = shell(READ_ONLY + '"$PYTHON" -c "$WHO"', "mount", DIR=str(home.store))
    assert result.stdout.startswith("tiny "), result.stderr
    assert "Read-only file system" in result.stderr
    assert "temporary copy" in result.stderr


def test_read_only_hugging_face_cache(pinned: Lock, home: Home) -> None:
    """What is there is read, what is missing comes from the Hub and is not put there."""
    home.fill_cache(pinned)
    home.cached("ops.py").unlink()
    folder = default_store().folder(VARIANT, pinned.variants[VARIANT])
    result = shell(READ_ONLY + '"$PYTHON" -c "$WHO"', "mount", DIR=str(home.cache))
    assert result.stdout == f"tiny {folder / '__init__.py'}\n", result.stderr


def test_hugging_face_cache_is_left_alone(pinned: Lock, home: Home) -> None:
    get_kernel()
    assert not home.cache.exists()


# What killed processes leave


def test_leftovers_are_removed_by_the_clock_of_the_disk(pinned: Lock, home: Home) -> None:
    """A day after; a younger one may be another process at work, wherever our own clock stands."""
    old, young = home.store / ".incoming-old", home.store / ".incoming-young"
    for folder, age in ((old, 2 * 86400), (young, 3600)):
        (folder / VARIANT).mkdir(parents=True)
        os.utime(folder, (time.time() - age,) * 2)
    home.monkeypatch.setattr(time, "time", lambda: 200 * YEAR)
    provide(pinned, VARIANT)
    assert not old.exists()
    assert young.exists()


def test_killed_while_writing(pinned: Lock, home: Home) -> None:
    """At the worst moment, all is written and nothing renamed: it is as if nothing had happened."""
    code = "import os, flash_rwkv.store; flash_rwkv.store._move = lambda *_: os.kill(os.getpid(), 9)\n" + WHO
    result = home.run("-c", code)
    assert result.returncode == -9
    (left,) = home.store.iterdir()
    assert left.name.startswith(".incoming-")
    assert get_kernel().whoami() == "tiny"


# Clocks


@pytest.mark.parametrize("now", [0, 200 * YEAR], ids=["1970", "2169"])
def test_clock_skew(pinned: Lock, home: Home, now: int) -> None:
    """Neither our clock nor the times of files decide anything."""
    clock = f"import time; time.time = lambda: {now}; time.time_ns = lambda: {now} * 10**9\n"
    for _ in ("from the Hub", "from the verified copy"):
        result = home.run("-c", clock + WHO)
        assert result.stdout.startswith(f"tiny {home.store}"), result.stderr
        for path in home.store.rglob("*"):
            os.utime(path, (200 * YEAR - now,) * 2)


# Names


def test_odd_paths(hub: LoopbackHub, home: Home, tmp_path: Path) -> None:
    """Spaces, colons, quotes, percent signs and letters of other scripts, in every path that can be set."""
    publish(hub, {VARIANT: TinyKernel()})
    home.pin(hub)
    folder = tmp_path / "a b: 'c' \"d\" %20 #e ё 猫; f=g"
    folder.mkdir()
    lock = folder / "lock: one.json"
    lock.write_text(Path(os.environ["FLASH_RWKV_LOCK"]).read_text())
    settings = {
        "FLASH_RWKV_LOCK": lock,
        "FLASH_RWKV_CACHE": folder / "store: 1",
        "HF_HOME": folder / "hf: 1",
        "KERNELS_CACHE": folder / "kernels: 1",
        "TMPDIR": folder,
    }
    result = home.run("-c", WHO, **{name: str(value) for name, value in settings.items()})
    assert result.stdout.startswith(f"tiny {folder / 'store: 1'}"), result.stderr


def test_user_without_a_home(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs with a number nobody has."""

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.delenv("FLASH_RWKV_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(LoaderError, match="set FLASH_RWKV_CACHE"):
        default_root()
