"""`get_kernel`: plan, provide, import."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from types import ModuleType

from .importing import import_variant
from .plan import SHORT_NAME, make_plan
from .provide import provide
from .signatures import Signer, check_signature
from .store import default_store

_log = logging.getLogger("flash_rwkv")
_loading = threading.RLock()
_loaded: dict[Path, ModuleType] = {}


def get_kernel(
    name: str = SHORT_NAME,
    revision: str | None = None,
    version: int | None = None,
    backend: str | None = None,
) -> ModuleType:
    """Load a kernel, verified file by file before any of it runs.

    Looked for in this order: the verified copies of earlier loads, what was carried to this machine (the
    folder in `FLASH_RWKV_LOCAL`, the wheel `flash-rwkv-kernels`), the Hugging Face cache, and only then the
    Hub. A build of yours in `FLASH_RWKV_LOCAL` comes before all and is not verified. The same kernel is the
    same module however often you ask.

    Args:
        name: `"flash-rwkv"`, the repository pinned in the loader's lock file; or a full id `"owner/name"`.
        revision: a full commit sha. Needed with a full id that the lock does not pin, optional otherwise.
        version: the version expected at the pinned commit. At most one of `revision` and `version`.
        backend: `"cpu"` or the backend Torch was built for (the default).

    Returns:
        The kernel's module, with `wkv4`, `wkv5`, `wkv6`, `wkv7`, their decode steps and layers.

    Raises:
        ValueError: an argument names nothing that can be pinned.
        NotPinnedError: the lock file names no commit.
        NoVariantError: no build variant fits this machine; the message has the reason for each.
        UnavailableError: the files are not on this machine and the Hub cannot give them.
        IntegrityError: a file is not the one that was pinned, or `FLASH_RWKV_SIGNER` has not signed it.
        LoaderError: there is no room for the files, or a setting does not lead to a kernel.
    """
    with _loading:
        plan = make_plan(name, revision, version, backend)
        variant = plan.variant
        if plan.lock:
            folder = default_store().folder(variant, plan.lock.variants[variant])
        else:
            folder = plan.local[variant]
        if folder not in _loaded:
            if plan.lock:
                verified, commit = provide(plan.lock, variant), plan.lock.commit
            else:
                verified, commit = folder, None
                if signer := Signer.required():
                    check_signature(folder, variant, signer)
                _log.warning("loading %s unverified, because FLASH_RWKV_LOCAL is set", folder)
            _loaded[folder] = import_variant(verified, plan.repository, commit, backend)
        return _loaded[folder]
