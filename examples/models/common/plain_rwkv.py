"""The recurrences in plain PyTorch, token by token in float32, for when no kernel can be loaded.

They are called as the kernel's operators. Letters in shapes: B batch, T tokens, H heads, N head size; the
state is `[B, H, N_value, N_key]`. Sources: arXiv 2404.05892 (RWKV-5 and 6), arXiv 2503.14456 (RWKV-7).
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

# The factor by which the state decays, from float32 w; the kernel's names.
_FACTORS: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": lambda w: torch.exp(-torch.exp(w)),
    "sigmoid": lambda w: torch.exp(-(torch.e**-0.5) * torch.sigmoid(w)),
}


def wkv5(
    r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Tensor | None = None, *, decay: str
) -> tuple[Tensor, Tensor]:
    """As `wkv6`, with one decay for all tokens: w is `[H, N]`."""
    return wkv6(r, k, v, w.expand_as(r), u, state, decay=decay)


def wkv6(
    r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Tensor | None = None, *, decay: str
) -> tuple[Tensor, Tensor]:
    """y_i = sum_j r_j (S_ij + u_j k_j v_i), of the S before the token; then S_ij <- d_j S_ij + k_j v_i.

    Args:
        r, k, v, w: `[B, T, H, N]`. u: `[H, N]`. state: None starts from zeros.

    Returns:
        y `[B, T, H, N]` in the dtype of r, and the state after the last token, float32.
    """
    state, outputs = _start(r, state), []
    d = _FACTORS[decay](w.float())
    bonus = u.float()[:, None]
    for t in range(r.shape[1]):
        written = _outer(v[:, t], k[:, t])
        outputs.append(((state + bonus * written) * r[:, t, :, None].float()).sum(-1))
        state = state * d[:, t, :, None] + written
    return torch.stack(outputs, 1).to(r.dtype), state


def wkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None = None,
    *,
    decay: str,
) -> tuple[Tensor, Tensor]:
    """S <- S diag(d) + (S a) b^T + v k^T; y = S r, of the new S. Arguments and results as of `wkv6`."""
    state, outputs = _start(r, state), []
    d = _FACTORS[decay](w.float())
    for t in range(r.shape[1]):
        read = (state * a[:, t, :, None].float()).sum(-1)
        state = state * d[:, t, :, None] + _outer(read, b[:, t]) + _outer(v[:, t], k[:, t])
        outputs.append((state * r[:, t, :, None].float()).sum(-1))
    return torch.stack(outputs, 1).to(r.dtype), state


def _start(r: Tensor, state: Tensor | None) -> Tensor:
    batch, _, heads, size = r.shape
    return r.new_zeros(batch, heads, size, size, dtype=torch.float32) if state is None else state


def _outer(rows: Tensor, columns: Tensor) -> Tensor:
    return rows.float()[..., None] * columns.float()[..., None, :]


def _step(operator: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
    """The operator as a step, on `[B, H, N]`: `state`, the last argument, is updated in place; returns y."""

    def step_(*arguments: Tensor, decay: str) -> Tensor:
        y, final = operator(*(each[:, None] if each.dim() == 3 else each for each in arguments), decay=decay)
        arguments[-1].copy_(final)
        return y[:, 0]

    return step_


OPERATORS = SimpleNamespace(
    __name__="PyTorch",
    wkv5=wkv5,
    wkv5_step_=_step(wkv5),
    wkv6=wkv6,
    wkv6_step_=_step(wkv6),
    wkv7=wkv7,
    wkv7_step_=_step(wkv7),
)
