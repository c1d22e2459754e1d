"""The functions of the package flash-rwkv 0.3.0, under their names and with their arguments.

Shapes: B batch, T tokens, H heads, N head size, C = H N. `time_decay` is raw: the state decays by
e^{-e^time_decay}. The state is `[B, H, N, N]`, value-major (see `reference`), and is never modified: the
final state is a new tensor. Unlike in 0.3.0, every sequence of a batch has a state of its own, any head size
that the operators know works, and all inputs, the state included, receive gradients.
"""

from __future__ import annotations

from torch import Tensor

from .ops import wkv5, wkv6

__all__ = ["rwkv5_cuda_linear_attention", "rwkv6_cuda_linear_attention"]


def rwkv5_cuda_linear_attention(
    receptance: Tensor,
    key: Tensor,
    value: Tensor,
    time_decay: Tensor,
    time_first: Tensor,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """RWKV-5 over T tokens.

    Args:
        receptance: `[B, T, C]`, float32, bfloat16 or float16 (on the CPU also float64).
        key: `[B, T, C]`, dtype of `receptance`.
        value: `[B, T, C]`, dtype of `receptance`.
        time_decay: raw decay, `[C]` or `[H, N]`, dtype of `receptance` or float32.
        time_first: bonus of the current token, `[C]` or `[H, N]`, dtype of `receptance` or float32.
        state: `[B, H, N, N]`, float32 (float64 beside float64 inputs). It decides what H and N are.

    Returns:
        out `[B, T, C]` in the dtype of `receptance`, and the final state `[B, H, N, N]`.

    Raises:
        ValueError: a shape does not fit the others.
        RuntimeError: a dtype or device does not.
    """
    name = "rwkv5_cuda_linear_attention"
    heads = _heads_of(name, state)
    r, k, v = (
        _split_heads(name, argument, tensor, heads)
        for argument, tensor in (("receptance", receptance), ("key", key), ("value", value))
    )
    w = _per_head(name, "time_decay", time_decay, heads)
    u = _per_head(name, "time_first", time_first, heads)
    out, state = wkv5(r, k, v, w, u, state, decay="exp")
    return out.reshape(receptance.shape), state


def rwkv6_cuda_linear_attention(
    receptance: Tensor,
    key: Tensor,
    value: Tensor,
    time_decay: Tensor,
    time_first: Tensor,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """RWKV-6 over T tokens.

    Args:
        receptance: `[B, T, C]`, float32, bfloat16 or float16 (on the CPU also float64).
        key: `[B, T, C]`, dtype of `receptance`.
        value: `[B, T, C]`, dtype of `receptance`.
        time_decay: raw decay of every token, `[B, T, C]`, dtype of `receptance` or float32.
        time_first: bonus of the current token, `[H, N]`, dtype of `receptance` or float32.
        state: `[B, H, N, N]`, float32 (float64 beside float64 inputs). It decides what H and N are.

    Returns:
        out `[B, T, H, N]` in the dtype of `receptance`, and the final state `[B, H, N, N]`.

    Raises:
        ValueError: a shape does not fit the others.
        RuntimeError: a dtype or device does not.
    """
    name = "rwkv6_cuda_linear_attention"
    heads = _heads_of(name, state)
    r, k, v, w = (
        _split_heads(name, argument, tensor, heads)
        for argument, tensor in (
            ("receptance", receptance),
            ("key", key),
            ("value", value),
            ("time_decay", time_decay),
        )
    )
    u = _per_head(name, "time_first", time_first, heads)
    return wkv6(r, k, v, w, u, state, decay="exp")


def _heads_of(function: str, state: Tensor) -> tuple[int, int]:
    """H and N, from the state `[B, H, N, N]`."""
    if state.dim() != 4 or state.shape[2] != state.shape[3]:
        raise ValueError(f"{function}: state must be [B, H, N, N], got {list(state.shape)}")
    return state.shape[1], state.shape[2]


def _split_heads(function: str, argument: str, tensor: Tensor, heads: tuple[int, int]) -> Tensor:
    """`[B, T, C]` as `[B, T, H, N]`."""
    channels = heads[0] * heads[1]
    if tensor.dim() != 3 or tensor.shape[2] != channels:
        raise ValueError(f"{function}: {argument} must be [B, T, C = {channels}], got {list(tensor.shape)}")
    return tensor.unflatten(2, heads)


def _per_head(function: str, argument: str, tensor: Tensor, heads: tuple[int, int]) -> Tensor:
    """`[C]` or `[H, N]` as `[H, N]`."""
    channels = heads[0] * heads[1]
    if tuple(tensor.shape) not in ((channels,), heads):
        raise ValueError(
            f"{function}: {argument} must be [C] = [{channels}] or [H, N] = {list(heads)}, "
            f"got {list(tensor.shape)}"
        )
    return tensor.reshape(heads)
