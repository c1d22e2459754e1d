"""Where the operators of RWKV come from: one kernel repository at one commit, or plain PyTorch.

Which one is constant, in `pin_rwkv.py`. Nothing in `config.json` reaches it, so a configuration cannot make
another kernel run; only the machine's owner can put a local build in its place, through `LOCAL_KERNELS`.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace

from huggingface_hub.constants import HF_HUB_OFFLINE
from torch import Tensor

from .pin_rwkv import FILES, REPOSITORY, REVISION
from .plain_rwkv import OPERATORS as PLAIN

_operators: ModuleType | SimpleNamespace | None = None


def operators() -> ModuleType | SimpleNamespace:
    """The kernel's operators, loaded once a process, or plain PyTorch after one warning that says why.

    Raises:
        RuntimeError: no kernel, and the environment has `FLASH_RWKV_STRICT=1`.
    """
    global _operators
    if _operators is None:
        _operators = _kernel_or_plain()
    return _operators


def recurrence(name: str, *inputs: Tensor, state: Tensor | None = None, decay: str) -> tuple[Tensor, Tensor]:
    """Run an operator, `"wkv5"`, `"wkv6"` or `"wkv7"`, on its inputs.

    Returns:
        y, as the first input, and the state `[B, H, N_value, N_key]` after the last token: `state` itself,
        updated where it stands, for single tokens `[B, H, N]`.
    """
    ops = operators()
    if inputs[0].dim() == 3:
        return getattr(ops, f"{name}_step_")(*inputs, state, decay=decay), state
    return getattr(ops, name)(*inputs, state, decay=decay)


def _kernel_or_plain() -> ModuleType | SimpleNamespace:
    try:
        import kernels  # in a `try`: transformers insists on packages that a model imports elsewhere

        return _load(kernels)
    except Exception as error:  # no package, no network, no fitting variant, a broken binary, other files
        reason = f"the kernel {REPOSITORY} at {REVISION[:12]} did not load: {type(error).__name__}: {error}"
        if os.environ.get("FLASH_RWKV_STRICT") == "1":
            raise RuntimeError(f"FLASH_RWKV_STRICT=1 and {reason}") from error
        warnings.warn(f"RWKV runs in plain PyTorch, far slower: {reason}", RuntimeWarning, stacklevel=4)
        return PLAIN


def _load(kernels: ModuleType) -> ModuleType:
    choice = {"revision": REVISION, "trust_remote_code": [REPOSITORY]}
    local = os.environ.get("LOCAL_KERNELS", "").split(":")
    if not any(entry.startswith(f"{REPOSITORY}=") for entry in local):
        check(kernels.install_kernel(REPOSITORY, local_files_only=HF_HUB_OFFLINE, **choice))
    # What Python compiled earlier lies beside the files and was not checked: let it look elsewhere.
    before = sys.pycache_prefix
    with tempfile.TemporaryDirectory() as sys.pycache_prefix:
        try:
            return kernels.get_kernel(REPOSITORY, **choice)
        finally:
            sys.pycache_prefix = before


def check(variant: Path) -> None:
    """Compare a build variant with the pin: the kernels library runs whatever lies in its cache.

    Raises:
        ValueError: a file differs, is missing or is not in the pin; one is named.
    """
    found = {
        path.relative_to(variant).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in variant.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    expected = FILES.get(variant.name, {})
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"{variant / name}: expected sha256 {expected.get(name)}, got {found.get(name)}; it is not "
                "what the model was made with and was not run"
            )
