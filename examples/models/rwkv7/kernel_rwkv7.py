"""Where the operators of RWKV-7 come from: one kernel repository at one commit, or plain PyTorch.

Both names are constants of this file. Nothing in `config.json` reaches it, so a configuration cannot make
another kernel run; only the machine's owner can put a local build in its place, through `LOCAL_KERNELS`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

REPOSITORY = "flash-rwkv/flash-rwkv"
# The commit of the kernel, a full sha: `examples/models/convert.py --kernel-revision` writes it.
REVISION = "0000000000000000000000000000000000000000"


class Operators(NamedTuple):
    """The two operators, called as `wkv7(r, w, k, v, a, b, state, decay="sigmoid")`, inputs `[B, T, H, N]`.

    Attributes:
        wkv7: returns y `[B, T, H, N]` and the state after the last token, `[B, H, N_value, N_key]`.
        wkv7_step_: returns y only, and updates the state where it stands; without gradients.
        source: the module of the kernel, or "PyTorch".
    """

    wkv7: Callable[..., tuple[Tensor, Tensor]]
    wkv7_step_: Callable[..., Tensor]
    source: str


_operators: Operators | None = None


def operators() -> Operators:
    """The kernel's operators, loaded once a process, or plain PyTorch after one warning that says why.

    Raises:
        RuntimeError: no kernel, and the environment has `FLASH_RWKV_STRICT=1`.
    """
    global _operators
    if _operators is None:
        _operators = _load()
    return _operators


def _load() -> Operators:
    try:
        from kernels import get_kernel

        kernel = get_kernel(REPOSITORY, revision=REVISION, trust_remote_code=[REPOSITORY])
        return Operators(kernel.wkv7, kernel.wkv7_step_, kernel.__name__)
    except (
        Exception
    ) as error:  # no package, no network, no fitting variant, a broken binary: all the same here
        reason = f"the kernel {REPOSITORY} at {REVISION[:12]} did not load: {type(error).__name__}: {error}"
        if os.environ.get("FLASH_RWKV_STRICT") == "1":
            raise RuntimeError(f"FLASH_RWKV_STRICT=1 and {reason}") from error
        warnings.warn(f"RWKV-7 runs in plain PyTorch, far slower: {reason}", RuntimeWarning, stacklevel=4)
        return Operators(plain_wkv7, plain_wkv7_step_, "PyTorch")


def plain_wkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None = None,
    *,
    decay: str = "sigmoid",
) -> tuple[Tensor, Tensor]:
    """The recurrence of arXiv 2503.14456, section 4, token by token in float32.

    Args:
        r, w, k, v, a, b: `[B, T, H, N]`.
        state: `[B, H, N_value, N_key]`, float32; None starts from zeros.
        decay: only `"sigmoid"`: d = e^(-e^(-1/2) sigmoid(w)).

    Returns:
        y `[B, T, H, N]` in the dtype of r, and the state after the last token, float32.
    """
    if decay != "sigmoid":
        raise ValueError(f"decay must be 'sigmoid' here, got {decay!r}")
    dtype = r.dtype
    d = torch.exp(-(torch.e**-0.5) * torch.sigmoid(w.float()))
    r, k, v, a, b = (each.float() for each in (r, k, v, a, b))
    if state is None:
        batch, _, heads, size = r.shape
        state = r.new_zeros(batch, heads, size, size)
    outputs = []
    for t in range(r.shape[1]):
        read = (state * a[:, t, :, None]).sum(-1, keepdim=True)
        written = v[:, t, :, :, None] * k[:, t, :, None]
        state = state * d[:, t, :, None] + read * b[:, t, :, None] + written
        outputs.append((state * r[:, t, :, None]).sum(-1))
    return torch.stack(outputs, 1).to(dtype), state


def plain_wkv7_step_(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor, *, decay: str = "sigmoid"
) -> Tensor:
    """As `plain_wkv7`, but `state` is updated in place; returns y."""
    y, final = plain_wkv7(r, w, k, v, a, b, state, decay=decay)
    state.copy_(final)
    return y
