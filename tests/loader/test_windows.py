"""Paths as Windows reads them: what a lock may name stays in its folder there too."""

from __future__ import annotations

from pathlib import PureWindowsPath

import pytest

from flash_rwkv.bundle import lock_name
from flash_rwkv.errors import LoaderError
from flash_rwkv.lockfile import FileEntry, Lock, safe_name, safe_path
from flash_rwkv.store import Store
from tests.loader.publishing import VARIANT

FOLDER = PureWindowsPath(r"C:\Users\some body\AppData\flash-rwkv")

LEADS_ELSEWHERE = [
    r"..\ops.py",
    r"sub\..\..\ops.py",
    r"\\server\share\ops.py",
    "C:/ops.py",
    "C:ops.py",
    "/ops.py",
    "ops.py:stream",  # an alternate data stream of ops.py
    "ops.py.",  # is ops.py
    "ops.py ",
    "sub./ops.py",
    "con",
    "NUL.py",
    "aux.tar.gz",
    "sub/COM1/ops.py",
    "lpt9.txt",
    "prn.",
    "ops?.py",
    "ops*.py",
    "ops<.py",
    "ops|.py",
    'ops".py',
    "ops\x01.py",
    "__PYCACHE__/ops.py",
    "ops.PYC",
]


@pytest.mark.parametrize("path", LEADS_ELSEWHERE)
def test_names_that_windows_reads_otherwise(path: str) -> None:
    with pytest.raises(ValueError, match="not allowed"):
        safe_path(path)


@pytest.mark.parametrize(
    "path", ["__init__.py", "flash_rwkv/__init__.py", "_flash_rwkv_cpu_1a.abi3.so", "consul.py"]
)
def test_names_that_stay(path: str) -> None:
    joined = FOLDER / VARIANT / safe_path(path)
    assert joined.is_relative_to(FOLDER / VARIANT)
    assert joined.relative_to(FOLDER / VARIANT).as_posix() == path
    assert not joined.is_reserved()


@pytest.mark.parametrize("name", ["con", "NUL.x", "a.", "..", "C:", "a\\b"])
def test_variants_that_windows_reads_otherwise(name: str) -> None:
    with pytest.raises(ValueError, match="not allowed"):
        safe_name(name)


def test_files_that_differ_in_case_alone(tmp_path) -> None:
    entry = FileEntry("0" * 64, 1)
    lock = Lock("a/b", "a" * 40, 1, {VARIANT: {"ops.py": entry, "Ops.py": entry}}, "")
    path = tmp_path / "lock.json"
    path.write_text(lock.dumps())
    with pytest.raises(LoaderError, match="differ in case alone"):
        Lock.read(path)


def test_the_store_is_laid_out_with_names_for_windows() -> None:
    folder = Store(FOLDER).folder(VARIANT, {"ops.py": FileEntry("0" * 64, 1)})
    assert isinstance(folder, PureWindowsPath)
    assert folder.is_relative_to(FOLDER)
    assert not set('<>:"/\\|?*') & set("".join(folder.parts[1:]))


def test_remembered_locks_have_names_for_windows() -> None:
    name = lock_name("owner/name", "a" * 40)
    assert (FOLDER / name).parent == FOLDER
    assert not set('<>:"/\\|?*') & set(name)


def test_lock_of_windows_reads_the_same(tmp_path) -> None:
    """Its line ends are two characters there."""
    lock = Lock("a/b", "a" * 40, 1, {VARIANT: {"ops.py": FileEntry("0" * 64, 1)}}, "")
    path = tmp_path / "lock.json"
    path.write_bytes(lock.dumps().replace("\n", "\r\n").encode())
    assert Lock.read(path).dumps() == lock.dumps()
