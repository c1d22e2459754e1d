"""The operators as plain functions that load the pinned kernel at their first call.

Importing this module imports neither Torch nor a kernel. Each function has the kernel's signature and
hands on its arguments; the kernel checks them. State is value-major, `[B, H, N_value, N_key]`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .load import get_kernel

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor

_pinned: ModuleType | None = None


def _load_once() -> None:
    """Load the pinned kernel at the first call of the process."""
    global _pinned
    if _pinned is None:
        _pinned = get_kernel()


# What `torch.compiler.assume_constant_result` does, without importing Torch here: while torch.compile traces
# a function, the loader runs as it is and only the code of the kernel is traced.
_load_once._dynamo_marked_constant = True


def _kernel() -> ModuleType:
    _load_once()
    return _pinned


def wkv4(k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """RWKV-4: a running softmax in every channel.

    Args:
        k, v: `[B, T, C]`. w, u: `[C]`, w = -exp(time_decay). state: `[B, 3, C]`, default the empty past.

    Returns:
        y `[B, T, C]` and the final state `[B, 3, C]`, differentiable in every input.
    """
    return _kernel().wkv4(k, v, w, u, state)


def wkv5(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    state: Tensor | None = None,
    *,
    decay: str = "exp",
    cu_seqlens: Tensor | None = None,
    algorithm: str = "auto",
) -> tuple[Tensor, Tensor]:
    """RWKV-5: a matrix state with one decay for each channel.

    Args:
        r, k, v: `[B, T, H, N]`. w, u: `[H, N]`. Everything else as in `wkv6`.

    Returns:
        y `[B, T, H, N]` and the final state `[B, H, N, N]`, differentiable in every input.
    """
    return _kernel().wkv5(r, k, v, w, u, state, decay=decay, cu_seqlens=cu_seqlens, algorithm=algorithm)


def wkv6(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    state: Tensor | None = None,
    *,
    decay: str = "exp",
    cu_seqlens: Tensor | None = None,
    algorithm: str = "auto",
) -> tuple[Tensor, Tensor]:
    """RWKV-6: a matrix state whose decay depends on the token.

    Args:
        r, k, v, w: `[B, T, H, N]`. u: `[H, N]`.
        state: `[B, H, N, N]`, or `[S, H, N, N]` with `cu_seqlens`; default zeros.
        decay: `"exp"` (d = e^-e^w), `"log"` (d = e^w) or `"sigmoid"` (d = e^(-e^(-1/2) sigmoid(w))).
        cu_seqlens: int32 `[S + 1]`, the bounds of sequences packed into one row (B = 1).
        algorithm: `"auto"`, `"recurrent"` or `"chunk"`.

    Returns:
        y `[B, T, H, N]` and the final state, differentiable in every input.
    """
    return _kernel().wkv6(r, k, v, w, u, state, decay=decay, cu_seqlens=cu_seqlens, algorithm=algorithm)


def wkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None = None,
    *,
    decay: str = "log",
    cu_seqlens: Tensor | None = None,
    algorithm: str = "auto",
) -> tuple[Tensor, Tensor]:
    """RWKV-7: the generalised delta rule S = S diag(d) + (S a) b^T + v k^T, y = S r.

    Args:
        r, w, k, v, a, b: `[B, T, H, N]`. Everything else as in `wkv6`, with `decay="log"` as the default.

    Returns:
        y `[B, T, H, N]` and the final state, differentiable in every input.
    """
    return _kernel().wkv7(r, w, k, v, a, b, state, decay=decay, cu_seqlens=cu_seqlens, algorithm=algorithm)


def wkv4_step_(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Tensor, slots: Tensor | None = None
) -> Tensor:
    """Decode RWKV-4, changing rows of a pool of states in place.

    Args:
        k, v: `[B, C]` or `[B, T, C]`. w, u: `[C]`. state: `[P, 3, C]`. slots: as in `wkv6_step_`.

    Returns:
        y in the shape of k.
    """
    return _kernel().wkv4_step_(k, v, w, u, state, slots)


def wkv5_step_(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    state: Tensor,
    slots: Tensor | None = None,
    *,
    decay: str = "exp",
) -> Tensor:
    """Decode RWKV-5: as `wkv6_step_`, with w `[H, N]`."""
    return _kernel().wkv5_step_(r, k, v, w, u, state, slots, decay=decay)


def wkv6_step_(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    state: Tensor,
    slots: Tensor | None = None,
    *,
    decay: str = "exp",
) -> Tensor:
    """Decode RWKV-6, changing rows of a pool of states in place.

    Args:
        r, k, v, w: `[B, H, N]` or `[B, T, H, N]`. u: `[H, N]`. decay: as in `wkv6`.
        state: `[P, H, N, N]`. slots: int32 `[B]`, the row of each sequence; default row b, and P = B.

    Returns:
        y in the shape of r.
    """
    return _kernel().wkv6_step_(r, k, v, w, u, state, slots, decay=decay)


def wkv7_step_(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor,
    slots: Tensor | None = None,
    *,
    decay: str = "log",
) -> Tensor:
    """Decode RWKV-7: r, w, k, v, a, b `[B, H, N]` or `[B, T, H, N]`; state and slots as in `wkv6_step_`."""
    return _kernel().wkv7_step_(r, w, k, v, a, b, state, slots, decay=decay)


def rwkv5_cuda_linear_attention(
    receptance: Tensor, key: Tensor, value: Tensor, time_decay: Tensor, time_first: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """RWKV-5 with the arguments of flash-rwkv 0.3.0.

    Args:
        receptance, key, value: `[B, T, C]`. time_decay, time_first: `[C]` or `[H, N]`, raw.
        state: `[B, H, N, N]`.

    Returns:
        out `[B, T, C]` and the final state, a new tensor.
    """
    return _kernel().rwkv5_cuda_linear_attention(receptance, key, value, time_decay, time_first, state)


def rwkv6_cuda_linear_attention(
    receptance: Tensor, key: Tensor, value: Tensor, time_decay: Tensor, time_first: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """RWKV-6 with the arguments of flash-rwkv 0.3.0.

    Args:
        receptance, key, value, time_decay: `[B, T, C]`. time_first: `[H, N]`. state: `[B, H, N, N]`.

    Returns:
        out `[B, T, H, N]` and the final state, a new tensor.
    """
    return _kernel().rwkv6_cuda_linear_attention(receptance, key, value, time_decay, time_first, state)
