"""Packs variants into a wheel, `flash-rwkv-kernels`, which carries them to machines without a network."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ._version import __version__
from .bundle import PACKAGE, lock_name
from .errors import LoaderError
from .lockfile import Lock
from .provide import provide
from .store import Store

_LINUX = re.compile(r"-(x86_64|aarch64)-linux$")
_FIRST_DAY = "315532800"  # 1980 begins, as early as an archive can say


def make_wheel(lock: Lock, variants: list[str], output: Path) -> Path:
    """Write a wheel of variants, fetched where they are missing, and return its path.

    The same lock and variants give the same bytes.

    Args:
        output: folder for the wheel, made when missing.

    Raises:
        LoaderError: the package wheel is not here, or a variant's platform has no tag for wheels.
        UnavailableError, IntegrityError: as when loading.
    """
    try:
        from wheel.wheelfile import WheelFile
    except ImportError:
        raise LoaderError("this needs the package wheel: pip install 'flash-rwkv[wheel]'") from None
    version = f"{lock.version or 0}+g{lock.commit[:12]}"
    tag = f"py3-none-{'.'.join(sorted(platforms(variants)))}"
    output.mkdir(parents=True, exist_ok=True)
    name = f"{PACKAGE}-{version}-{tag}.whl"
    with tempfile.TemporaryDirectory(prefix="flash-rwkv-wheel-") as folder:
        content, path = Path(folder) / "content", Path(folder) / name
        _fill(Store(content / PACKAGE), lock, variants)
        with _same_times(), WheelFile(path, "w") as wheel:
            info = content / wheel.dist_info_path
            info.mkdir()
            (info / "METADATA").write_bytes(_metadata(version))
            (info / "WHEEL").write_text(_format(tag))
            for file in content.rglob("*"):
                file.chmod(0o755 if file.is_dir() else 0o644)
            wheel.write_files(str(content))
        return Path(shutil.move(path, output / name))


def platforms(variants: list[str]) -> set[str]:
    """Return the platform tags of a wheel with these variants: `any` if one of them runs anywhere."""
    if "torch-universal" in variants:
        return {"any"}
    found = {variant: _LINUX.search(variant) for variant in variants}
    if others := sorted(variant for variant, match in found.items() if match is None):
        raise LoaderError(f"{others[0]} is for no platform that wheels have a tag for: use `prefetch --to`")
    return {f"manylinux_2_28_{match[1]}" for match in found.values()}


def _fill(store: Store, lock: Lock, variants: list[str]) -> None:
    for variant in variants:
        provide(lock, variant, store=store, repair=True)
    store.write_text(lock_name(lock.repository, lock.commit), lock.dumps())


def _metadata(version: str) -> bytes:
    from packaging.metadata import Metadata

    fields = {
        "metadata_version": "2.4",
        "name": PACKAGE.replace("_", "-"),
        "version": version,
        "summary": "Compiled RWKV kernels for the package flash-rwkv, which verifies and loads them",
        "license_expression": "Apache-2.0",
        "requires_python": ">=3.10",
        "requires_dist": [f"flash-rwkv>={__version__}"],
    }
    return Metadata.from_raw(fields).as_rfc822().as_bytes()


def _format(tag: str) -> str:
    from packaging.tags import parse_tag

    lines = ["Wheel-Version: 1.0", f"Generator: flash-rwkv ({__version__})", "Root-Is-Purelib: true"]
    return "\n".join(lines + sorted(f"Tag: {each}" for each in parse_tag(tag))) + "\n"


@contextmanager
def _same_times() -> Iterator[None]:
    """Have every file in the archive say one time, unless the user names another."""
    before = os.environ.get("SOURCE_DATE_EPOCH")
    os.environ["SOURCE_DATE_EPOCH"] = before or _FIRST_DAY
    try:
        yield
    finally:
        if before is None:
            del os.environ["SOURCE_DATE_EPOCH"]
