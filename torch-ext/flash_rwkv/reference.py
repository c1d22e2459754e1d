"""The RWKV recurrences, token by token, in plain differentiable PyTorch.

This is the oracle of the project: tests and benchmarks measure the kernels against it. It follows the
published formulas literally, works on any device and with any head size, and computes in the promoted dtype
of its inputs, at least float32. Give it float64 inputs to get a reference result.

Sources: RWKV-4, arXiv 2305.13048; RWKV-5 and RWKV-6 ("Eagle and Finch"), arXiv 2404.05892; RWKV-7 ("Goose"),
arXiv 2503.14456; and the kernels in the repository BlinkDL/RWKV-LM, from which the state layout comes.

Shapes: B batch, T tokens, H heads, N head size, C channels. Tokens are `[B, T, H, N]` (RWKV-4: `[B, T, C]`).
The state of RWKV-5, 6 and 7 is **value-major**: `state[b, h, i, j]` belongs to value channel i and key
channel j; fla and the Python loops of transformers keep the transpose (key-major). A final state is float32,
or float64 when any input is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["DECAYS", "decay_factor", "wkv4", "wkv5", "wkv6", "wkv7"]

DECAYS = ("log", "exp", "sigmoid")

# exp(-exp(w)) is 0 in float64 from w = 6.62 on. Beyond 80 nothing changes but that exp(w) would overflow, and
# the derivative -exp(w) * exp(-exp(w)) turn from 0 into inf * 0.
_EXP_DECAY_LIMIT = 80.0

# RWKV-7 bounds its decay from below: exp(-exp(-1/2)) = 0.545.
_SIGMOID_DECAY_SCALE = 0.6065306597126334

# log of the weight of an empty RWKV-4 state: its exponential is 0 beside any token.
_WKV4_EMPTY = -1e38


def decay_factor(w: Tensor, decay: str) -> Tensor:
    """The factor d in which one token lets the state decay, elementwise.

    Args:
        w: any shape, floating point.
        decay: `"log"`: d = e^w (fla's form); `"exp"`: d = e^{-e^w} (raw RWKV-5, RWKV-6 and early RWKV-7);
            `"sigmoid"`: d = e^{-e^{-1/2} sigmoid(w)} (RWKV-7, d in (0.545, 1)).

    Returns:
        d, shape and dtype of `w`. It and its derivative are finite for every w with d <= 1, even -inf.

    Raises:
        ValueError: `decay` is none of these.
    """
    if decay == "log":
        return torch.exp(w)
    if decay == "exp":
        return torch.exp(-torch.exp(w.clamp(max=_EXP_DECAY_LIMIT)))
    if decay == "sigmoid":
        return torch.exp(-_SIGMOID_DECAY_SCALE * torch.sigmoid(w))
    raise ValueError(f"decay must be one of {', '.join(map(repr, DECAYS))}, got {decay!r}")


def wkv4(k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """RWKV-4: a weighted mean over the past with exponentially decaying weights, per channel.

    The sums p = sum(weight * value) and q = sum(weight) are kept as multiples of e^o, so that no exponential
    overflows: with m = max(o, u + k), y = (e^{o-m} p + e^{u+k-m} v) / (e^{o-m} q + e^{u+k-m}); then with
    m = max(w + o, k), p <- e^{w+o-m} p + e^{k-m} v, q <- e^{w+o-m} q + e^{k-m}, o <- m.

    Args:
        k: keys, `[B, T, C]`.
        v: values, `[B, T, C]`.
        w: log decay, `[C]`, -exp(time_decay), below 0.
        u: bonus of the current token, `[C]`.
        state: `[B, 3, C]`, p, q and o; None is the empty state (0, 0, -1e38).

    Returns:
        y `[B, T, C]` in the dtype of `k`, and the final state `[B, 3, C]`, float32 or float64, a new tensor.
    """
    dtype = _compute_dtype(k, v, w, u, state)
    keys, values, w, u = (x.to(dtype) for x in (k, v, w, u))
    if state is None:
        state = keys.new_zeros(k.shape[0], 3, k.shape[2])
        state[:, 2] = _WKV4_EMPTY

    def step(state: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        p, q, o = state.unbind(1)
        # y does not depend on m, only its rounding does: no gradient goes there.
        m = torch.maximum(o, u + k).detach()
        past, present = torch.exp(o - m), torch.exp(u + k - m)
        y = (past * p + present * v) / (past * q + present)
        # Not torch.maximum, which would halve the gradient of o where both are equal; here the past gets it.
        m = torch.where(w + o < k, k, w + o)
        past, present = torch.exp(w + o - m), torch.exp(k - m)
        return y, torch.stack([past * p + present * v, past * q + present, m], dim=1)

    y, state = _scan(step, [keys, values], state.to(dtype, copy=True))
    return y.to(k.dtype), state


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
) -> tuple[Tensor, Tensor]:
    """RWKV-5 (Eagle): y_i = sum_j r_j (S_ij + u_j k_j v_i), then S_ij <- d_j S_ij + k_j v_i.

    Args:
        r: receptance, `[B, T, H, N]`.
        k: keys, `[B, T, H, N]`.
        v: values, `[B, T, H, N]`.
        w: decay, `[H, N]`, see `decay`.
        u: bonus of the current token, `[H, N]`.
        state: `[B, H, N, N]`, value-major; `[S, H, N, N]` with `cu_seqlens`; None is zero.
        decay: how d comes from w, see `decay_factor`.
        cu_seqlens: int `[S + 1]`, where each of S packed sequences starts, then T; needs B = 1.

    Returns:
        y `[B, T, H, N]` in the dtype of `r`, and the final state, a new tensor shaped like `state`.
    """
    # Expanded only after the decay is taken, so that one decay a head is differentiated, not T of them.
    d = decay_factor(w.to(_compute_dtype(r, k, v, w, u, state)), decay).expand(r.shape)
    return _wkv6(r, k, v, d, u, state, cu_seqlens)


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
) -> tuple[Tensor, Tensor]:
    """RWKV-6 (Finch): as `wkv5`, with a decay for every token.

    Args:
        r: receptance, `[B, T, H, N]`.
        k: keys, `[B, T, H, N]`.
        v: values, `[B, T, H, N]`.
        w: decay, `[B, T, H, N]`, see `decay`.
        u: bonus of the current token, `[H, N]`.
        state: `[B, H, N, N]`, value-major; `[S, H, N, N]` with `cu_seqlens`; None is zero.
        decay: how d comes from w, see `decay_factor`.
        cu_seqlens: int `[S + 1]`, where each of S packed sequences starts, then T; needs B = 1.

    Returns:
        y `[B, T, H, N]` in the dtype of `r`, and the final state, a new tensor shaped like `state`.
    """
    d = decay_factor(w.to(_compute_dtype(r, k, v, w, u, state)), decay)
    return _wkv6(r, k, v, d, u, state, cu_seqlens)


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
) -> tuple[Tensor, Tensor]:
    """RWKV-7 (Goose), a generalised delta rule: S <- S diag(d) + (S a) b^T + v k^T, then y = S r.

    Args:
        r: receptance, `[B, T, H, N]`.
        w: decay, `[B, T, H, N]`, see `decay`.
        k: keys, `[B, T, H, N]`.
        v: values, `[B, T, H, N]`.
        a: direction that is read from the state, `[B, T, H, N]`; in RWKV-7 -kk, with kk of length 1.
        b: direction in which that is written back, `[B, T, H, N]`; in RWKV-7 kk times a learning rate.
        state: `[B, H, N, N]`, value-major; `[S, H, N, N]` with `cu_seqlens`; None is zero.
        decay: how d comes from w, see `decay_factor`.
        cu_seqlens: int `[S + 1]`, where each of S packed sequences starts, then T; needs B = 1.

    Returns:
        y `[B, T, H, N]` in the dtype of `r`, and the final state, a new tensor shaped like `state`.
    """
    dtype = _compute_dtype(r, w, k, v, a, b, state)
    tokens = [x.to(dtype) for x in (r, k, v, a, b)] + [decay_factor(w.to(dtype), decay)]

    def step(
        state: Tensor, r: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, d: Tensor
    ) -> tuple[Tensor, Tensor]:
        state = state * d[..., None, :] + _outer(_apply(state, a), b) + _outer(v, k)
        return _apply(state, r), state

    y, state = _scan(step, tokens, _initial_state(state, tokens[0], cu_seqlens), cu_seqlens)
    return y.to(r.dtype), state


def _wkv6(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    d: Tensor,
    u: Tensor,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """RWKV-5 and 6 from the decay factor d `[B, T, H, N]`, whose dtype is the one to compute in."""
    tokens = [x.to(d.dtype) for x in (r, k, v)] + [d]
    u = u.to(d.dtype)

    def step(state: Tensor, r: Tensor, k: Tensor, v: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        bonus = (r * u * k).sum(-1, keepdim=True)
        return _apply(state, r) + bonus * v, state * d[..., None, :] + _outer(v, k)

    y, state = _scan(step, tokens, _initial_state(state, tokens[0], cu_seqlens), cu_seqlens)
    return y.to(r.dtype), state


def _scan(
    step: Callable[..., tuple[Tensor, Tensor]],
    tokens: Sequence[Tensor],
    state: Tensor,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Carry `state` through `step(state, *token) -> (y, state)`, over dimension 1 of each of `tokens`."""
    if cu_seqlens is not None:
        return _scan_packed(step, tokens, state, cu_seqlens)
    # With no token, y is empty like the tokens are, and stays part of the graph.
    ys = []
    for token in zip(*(x.unbind(1) for x in tokens)):
        y, state = step(state, *token)
        ys.append(y)
    return (torch.stack(ys, dim=1) if ys else tokens[0].clone()), state


def _scan_packed(
    step: Callable[..., tuple[Tensor, Tensor]], tokens: Sequence[Tensor], state: Tensor, cu_seqlens: Tensor
) -> tuple[Tensor, Tensor]:
    """Each of the sequences that lie end to end in dimension 1, with its own row of `state`."""
    bounds = cu_seqlens.tolist()
    results = [
        _scan(step, [x[:, start:end] for x in tokens], state[i : i + 1])
        for i, (start, end) in enumerate(zip(bounds, bounds[1:]))
    ]
    if not results:
        return tokens[0].clone(), state
    ys, states = zip(*results)
    return torch.cat(ys, dim=1), torch.cat(states, dim=0)


def _initial_state(state: Tensor | None, token: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """A fresh `[B or S, H, N, N]` state in the dtype of `token`: a copy of `state`, or zero."""
    if state is not None:
        return state.to(token.dtype, copy=True)
    batch, _, heads, size = token.shape
    sequences = batch if cu_seqlens is None else cu_seqlens.numel() - 1
    return token.new_zeros(sequences, heads, size, size)


def _compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """What the given tensors promote to, at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        if tensor is not None:
            dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    """Matrix `[..., N, M]` times vector `[..., M]`."""
    return (matrix * vector[..., None, :]).sum(-1)


def _outer(column: Tensor, row: Tensor) -> Tensor:
    """`[..., N]` and `[..., M]` to the matrix `[..., N, M]` of their products."""
    return column[..., :, None] * row[..., None, :]
