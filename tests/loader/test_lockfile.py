"""The lock file: what it may say, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flash_rwkv.errors import LoaderError, NotPinnedError
from flash_rwkv.lockfile import SHIPPED, FileEntry, Lock, file_entry, table_digest

ENTRY = {"sha256": "0" * 64, "size": 1}
GOOD = {
    "schema": 1,
    "repository": "flash-rwkv/flash-rwkv",
    "revision": "a" * 40,
    "version": 1,
    "variants": {"torch-cpu": {"__init__.py": ENTRY, "sub/ops.py": ENTRY}},
}


def write(path: Path, value: object) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_reads_back_what_it_writes(tmp_path: Path) -> None:
    lock = Lock.read(write(tmp_path / "lock", GOOD))
    again = Lock.read(write(tmp_path / "again", lock.dumps()))
    assert again.dumps() == lock.dumps()
    assert json.loads(lock.dumps()) == GOOD
    assert lock.variants["torch-cpu"]["sub/ops.py"] == FileEntry("0" * 64, 1)


def test_text_does_not_depend_on_order(tmp_path: Path) -> None:
    backwards = {
        **GOOD,
        "variants": {"torch-cpu": dict(reversed(list(GOOD["variants"]["torch-cpu"].items())))},
    }
    assert (
        Lock.read(write(tmp_path / "a", backwards)).dumps() == Lock.read(write(tmp_path / "b", GOOD)).dumps()
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema"),
        ({"repository": "flash-rwkv"}, "owner/name"),
        ({"repository": "../x/y"}, "owner/name"),
        ({"revision": "main"}, "full commit sha"),
        ({"revision": "A" * 40}, "full commit sha"),
        ({"version": "1"}, "version"),
        ({"variants": {"..": {}}}, "variant name"),
        ({"variants": {"torch-cpu": {"../ops.py": ENTRY}}}, "not allowed"),
        ({"variants": {"torch-cpu": {"/etc/ops.py": ENTRY}}}, "not allowed"),
        ({"variants": {"torch-cpu": {"sub\\ops.py": ENTRY}}}, "not allowed"),
        ({"variants": {"torch-cpu": {"__pycache__/ops.py": ENTRY}}}, "not allowed"),
        ({"variants": {"torch-cpu": {"ops.pyc": ENTRY}}}, "not allowed"),
        ({"variants": {"torch-cpu": {"ops.py": {"sha256": "0", "size": 1}}}}, "64 hexadecimal digits"),
        ({"variants": {"torch-cpu": {"ops.py": {"sha256": "0" * 64}}}}, "size"),
    ],
)
def test_refuses_what_it_cannot_mean(tmp_path: Path, change: dict, message: str) -> None:
    path = write(tmp_path / "lock", {**GOOD, **change})
    with pytest.raises(LoaderError, match=message) as caught:
        Lock.read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", '"text"', "{"])
def test_refuses_what_is_no_lock(tmp_path: Path, text: str) -> None:
    with pytest.raises(LoaderError, match="not a lock file"):
        Lock.read(write(tmp_path / "lock", text))


def test_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASH_RWKV_LOCK", str(tmp_path / "nowhere"))
    with pytest.raises(LoaderError, match="nowhere"):
        Lock.current()


def test_shipped_lock_is_complete_or_says_that_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """No made-up sha: a lock names a commit and its files, or neither."""
    monkeypatch.delenv("FLASH_RWKV_LOCK", raising=False)
    lock = Lock.current()
    assert SHIPPED.name == "flash_rwkv.lock.json"
    assert (lock.revision is None) == (not lock.variants) == (lock.version is None)
    assert all("metadata.json" in files for files in lock.variants.values())


def test_unpublished_lock_says_what_to_do(tmp_path: Path) -> None:
    empty = {**GOOD, "revision": None, "version": None, "variants": {}}
    with pytest.raises(NotPinnedError, match=r"flash-rwkv lock .* FLASH_RWKV_LOCK.* FLASH_RWKV_LOCAL"):
        _ = Lock.read(write(tmp_path / "lock", empty)).commit


def test_digest_of_a_variant_covers_names_and_content() -> None:
    files = {"a": FileEntry("0" * 64, 1)}
    others = [{"b": FileEntry("0" * 64, 1)}, {"a": FileEntry("1" * 64, 1)}, {"a": FileEntry("0" * 64, 2)}]
    digests = {table_digest("v", table) for table in (files, *others)} | {table_digest("w", files)}
    assert len(digests) == 5


def test_copy_holds_the_bytes_that_were_hashed(tmp_path: Path) -> None:
    data = bytes(range(256)) * 9000  # more than one chunk
    source = tmp_path / "source"
    source.write_bytes(data)
    entry = file_entry(source, tmp_path / "copy")
    assert entry == file_entry(tmp_path / "copy")
    assert entry.size == len(data)
    assert (tmp_path / "copy").read_bytes() == data
