"""Where the operators of RWKV come from: one kernel repository at one commit, or plain PyTorch.

Both names are constants of this file. Nothing in `config.json` reaches it, so a configuration cannot make
another kernel run; only the machine's owner can put a local build in its place, through `LOCAL_KERNELS`.
"""

from __future__ import annotations

import os
import warnings
from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor

from .plain_rwkv import OPERATORS as PLAIN

REPOSITORY = "flash-rwkv/flash-rwkv"
# The commit of the kernel, a full sha: `examples/models/convert.py --kernel-revision` writes it.
REVISION = "0000000000000000000000000000000000000000"

_operators: ModuleType | SimpleNamespace | None = None


def operators() -> ModuleType | SimpleNamespace:
    """The kernel's operators, loaded once a process, or plain PyTorch after one warning that says why.

    Raises:
        RuntimeError: no kernel, and the environment has `FLASH_RWKV_STRICT=1`.
    """
    global _operators
    if _operators is None:
        _operators = _load()
    return _operators


def _load() -> ModuleType | SimpleNamespace:
    try:
        from kernels import get_kernel

        return get_kernel(REPOSITORY, revision=REVISION, trust_remote_code=[REPOSITORY])
    except Exception as error:  # no package, no network, no fitting variant, a broken binary: all the same
        reason = f"the kernel {REPOSITORY} at {REVISION[:12]} did not load: {type(error).__name__}: {error}"
        if os.environ.get("FLASH_RWKV_STRICT") == "1":
            raise RuntimeError(f"FLASH_RWKV_STRICT=1 and {reason}") from error
        warnings.warn(f"RWKV runs in plain PyTorch, far slower: {reason}", RuntimeWarning, stacklevel=4)
        return PLAIN


def recurrence(name: str, *inputs: Tensor, state: Tensor | None = None, decay: str) -> tuple[Tensor, Tensor]:
    """Run an operator, `"wkv5"`, `"wkv6"` or `"wkv7"`, on its inputs.

    Returns:
        y `[B, T, H, N]`, and the state `[B, H, N_value, N_key]` after the last token: `state` itself, updated
        where it stands, for a single token when no gradients are wanted.
    """
    ops = operators()
    if state is not None and inputs[0].shape[1] == 1 and not torch.is_grad_enabled():
        return getattr(ops, f"{name}_step_")(*inputs, state, decay=decay), state
    return getattr(ops, name)(*inputs, state, decay=decay)
