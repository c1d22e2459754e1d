"""flash-linear-attention's functions for RWKV-6 and RWKV-7, under their names and with their conventions.

For models written for that library (https://github.com/fla-org/flash-linear-attention, 0.6.0). Against the
functions of :mod:`ops`: the decay is a logarithm; states are **key-major**, ``[.., N_key, N_value]``, and
come back only if asked for; y is multiplied by ``scale``, for most functions ``N ** -0.5`` if not given;
cu_seqlens may be int64. Keys and values must be of one head size. What concerns the speed of that library's
kernels alone (``chunk_size``, ``safe_gate`` and the like) is taken and has no effect.

Letters: B batch, T tokens, H heads, N head size, S sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import ops

__all__ = [
    "chunk_rwkv6",
    "chunk_rwkv7",
    "fused_mul_recurrent_rwkv7",
    "fused_recurrent_rwkv6",
    "fused_recurrent_rwkv7",
]


def chunk_rwkv6(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    **tuning: Any,
) -> tuple[Tensor, Tensor | None]:
    """:func:`ops.wkv6`, in matrix form where that pays.

    Args:
        r, k, v: ``[B, T, H, N]``.
        w: ``[B, T, H, N]``, the logarithm of the decay.
        u: ``[H, N]``, the bonus of the token itself.
        scale: factor of y. Default: ``N ** -0.5``.
        initial_state: ``[S, H, N_key, N_value]``. Default: zeros.
        output_final_state: whether to return the final state. Default: False.
        cu_seqlens: ``[S + 1]``, int32 or int64: sequences packed into one row.
        cu_seqlens_cpu, tuning: without effect.

    Returns:
        y ``[B, T, H, N]``, and the final state ``[S, H, N_key, N_value]`` or None.

    Raises: as :func:`ops.wkv6`.
    """
    _refuse("chunk_rwkv6", tuning, "cp_context", "reverse")
    return _wkv6("auto", (r, k, v, w, u), scale, initial_state, output_final_state, cu_seqlens)


def fused_recurrent_rwkv6(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """As :func:`chunk_rwkv6`, token by token. `reverse` must be False."""
    _refuse("fused_recurrent_rwkv6", {"reverse": reverse}, "reverse")
    return _wkv6("recurrent", (r, k, v, w, u), scale, initial_state, output_final_state, cu_seqlens)


def chunk_rwkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    scale: float | None = 1.0,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    **tuning: Any,
) -> tuple[Tensor, Tensor | None]:
    """:func:`ops.wkv7`, in matrix form where that pays; scale is 1 by default.

    Args:
        r, k, v, a, b: ``[B, T, H, N]``.
        w: ``[B, T, H, N]``, the logarithm of the decay.
        scale: factor of y; None: ``N ** -0.5``. Default: 1.
        initial_state, output_final_state, cu_seqlens, cu_seqlens_cpu, tuning: as in :func:`chunk_rwkv6`.

    Returns, Raises: as :func:`chunk_rwkv6`.
    """
    _refuse("chunk_rwkv7", tuning, "cp_context", "reverse")
    return _wkv7("auto", (r, w, k, v, a, b), scale, initial_state, output_final_state, cu_seqlens)


def fused_recurrent_rwkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = True,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """As :func:`chunk_rwkv7`, token by token; here scale is ``N ** -0.5`` and the state comes by default."""
    return _wkv7("recurrent", (r, w, k, v, a, b), scale, initial_state, output_final_state, cu_seqlens)


def fused_mul_recurrent_rwkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    kk: Tensor,
    a: Tensor,
    scale: float | None = 1.0,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """As :func:`chunk_rwkv7`, token by token, of kk and the gate `a`: ``-kk`` and ``kk * a`` for its a and b.

    `reverse` must be False.
    """
    _refuse("fused_mul_recurrent_rwkv7", {"reverse": reverse}, "reverse")
    inputs = (r, w, k, v, -kk, kk * a)
    return _wkv7("recurrent", inputs, scale, initial_state, output_final_state, cu_seqlens)


def _wkv6(algorithm: str, inputs: tuple[Tensor, ...], *options: Any) -> tuple[Tensor, Tensor | None]:
    r, k, v, w, u = inputs
    return _run(ops.wkv6, algorithm, (r, k, v, _as(w, r), _as(u, r)), *options)


def _wkv7(algorithm: str, inputs: tuple[Tensor, ...], *options: Any) -> tuple[Tensor, Tensor | None]:
    r, w, k, v, a, b = inputs
    return _run(ops.wkv7, algorithm, (r, _as(w, r), k, v, a.to(r.dtype), b.to(r.dtype)), *options)


def _run(
    operator: Callable[..., tuple[Tensor, Tensor]],
    algorithm: str,
    inputs: tuple[Tensor, ...],
    scale: float | None,
    initial_state: Tensor | None,
    output_final_state: bool,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    r, *rest = inputs
    keywords = {"decay": "log", "cu_seqlens": _int32(cu_seqlens), "algorithm": algorithm}
    y, state = operator(_scaled(r, scale), *rest, _turned(initial_state), **keywords)
    return y, _turned(state) if output_final_state else None


def _refuse(function: str, options: dict[str, Any], *names: str) -> None:
    for name in names:
        if options.get(name):
            raise ValueError(f"{function}: expected no {name}, which is not offered, got {options[name]!r}")


def _scaled(r: Tensor, scale: float | None) -> Tensor:
    """y is linear in r."""
    scale = r.shape[-1] ** -0.5 if scale is None else scale
    return r if scale == 1 else r * scale


def _as(free: Tensor, r: Tensor) -> Tensor:
    """w and u may be of r's dtype or float32; there may be others in a model written for fla."""
    return (
        free
        if free.dtype in (r.dtype, torch.float32)
        else free.to(torch.promote_types(r.dtype, torch.float32))
    )


def _turned(state: Tensor | None) -> Tensor | None:
    """Between key-major and value-major; float32 unless float64."""
    if state is None:
        return None
    return state.to(torch.promote_types(state.dtype, torch.float32)).transpose(-1, -2).contiguous()


def _int32(cu_seqlens: Tensor | None) -> Tensor | None:
    return None if cu_seqlens is None else cu_seqlens.to(torch.int32)
