"""The WKV operators: public functions, their fakes for tracing, their gradients.

Letters in shapes: B batch, T tokens, H heads, N head size, C = H·N channels, S sequences, P rows of a state pool.
The matrix state is **value-major**, ``[.., N_value, N_key]``, as in BlinkDL's kernels; flash-linear-attention and
Hugging Face's Python loops keep it key-major, so transpose the last two dimensions when moving states across.
"""

from __future__ import annotations

from typing import Optional, Tuple

import torch
from torch import Tensor

from ._ops import add_op_namespace_prefix, ops

DECAYS = {"log": 0, "exp": 1, "sigmoid": 2}
ALGORITHMS = ("auto", "recurrent", "chunk")

# Tokens between two states that forward saves for backward; kCheckpointTokens in kernel_src/include/wkv_params.h.
CHECKPOINT_TOKENS = 64


# --------------------------------------------------------------------------------------------------------------
# Public functions
# --------------------------------------------------------------------------------------------------------------


def wkv4(k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
    """RWKV-4's attention, a running softmax a channel (arXiv 2305.13048, section 3 and appendix D).

    Args:
        k, v: ``[B, T, C]``, float32, bfloat16 or float16 (float64 on the CPU), of one dtype; any T >= 0.
        w: ``[C]``, the log decay a token, ``-exp(time_decay) < 0``; the dtype of k, or float32.
        u: ``[C]``, ``time_first``, the bonus of the token itself; the dtype of k, or float32.
        state: ``[B, 3, C]`` = (p, q, o), numerator and denominator scaled by ``e^o``; float32 (float64 for float64
            inputs). Default: the empty past, (0, 0, -1e38).

    Returns:
        y ``[B, T, C]`` in the dtype of k, and the state after the last token, ``[B, 3, C]``. Both are differentiable
        in every input.

    Raises:
        RuntimeError: an argument has the wrong shape, dtype or device; the message names it.
    """
    k, v, w, u, state = _under_autocast((k, v), (w, u), state)
    return ops.wkv4_forward(k, v, w, u, state, _wants_gradient(k, v, w, u, state))[:2]


def wkv5(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    state: Optional[Tensor] = None,
    *,
    decay: str = "exp",
    cu_seqlens: Optional[Tensor] = None,
    algorithm: str = "auto",
) -> Tuple[Tensor, Tensor]:
    """RWKV-5's (Eagle's) attention with a matrix state and one decay a channel (arXiv 2404.05892, section 3).

    As :func:`wkv6`, but ``w`` is ``[H, N]``: the decay does not depend on the token.
    """
    code = _options("wkv5", r, decay, algorithm)
    r, k, v, w, u, state = _under_autocast((r, k, v), (w, u), state)
    save = _wants_gradient(r, k, v, w, u, state)
    return ops.wkv5_forward(r, k, v, w, u, state, cu_seqlens, code, save)[:2]


def wkv6(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    state: Optional[Tensor] = None,
    *,
    decay: str = "exp",
    cu_seqlens: Optional[Tensor] = None,
    algorithm: str = "auto",
) -> Tuple[Tensor, Tensor]:
    """RWKV-6's (Finch's) attention: a matrix state whose decay depends on the token (arXiv 2404.05892, section 4).

    With S the state before token t, a head: ``y_i = sum_j r_j (S_ij + u_j k_j v_i)``, then
    ``S_ij <- d_j S_ij + k_j v_i``.

    Args:
        r, k, v: receptance, key, value, ``[B, T, H, N]``, float32, bfloat16 or float16 (float64 on the CPU), of one
            dtype; any T >= 0, N a multiple of 8 from 8 to 256. Any strides.
        w: ``[B, T, H, N]``, what the decay d is made of; the dtype of r, or float32.
        u: ``[H, N]``, ``time_first``, the bonus of the token itself; the dtype of r, or float32.
        state: ``[B, H, N_value, N_key]`` before the first token, float32 (float64 for float64 inputs).
            Default: zeros. With cu_seqlens ``[S, H, N_value, N_key]``.
        decay: ``"exp"`` (default): d = e^(-e^w), RWKV-5's and 6's raw form; ``"log"``: d = e^w;
            ``"sigmoid"``: d = e^(-e^(-1/2) sigmoid(w)), RWKV-7's.
        cu_seqlens: int32 ``[S + 1]``, from 0 to T: sequences packed into one row, B = 1. Lengths 0 and 1 are fine.
        algorithm: ``"auto"`` (default), ``"recurrent"`` (token by token, bitwise the same however tokens are split
            over calls, batched or packed) or ``"chunk"`` (matrix form on tensor cores; not on the CPU).

    Returns:
        y ``[B, T, H, N]`` in the dtype of r, and the state after the last token in the layout of ``state``. Both are
        differentiable in every floating-point input.

    Raises:
        ValueError: unknown decay or algorithm. RuntimeError: wrong shape, dtype, device or cu_seqlens. Messages name
        the argument, what was expected and what came.
    """
    code = _options("wkv6", r, decay, algorithm)
    r, k, v, w, u, state = _under_autocast((r, k, v), (w, u), state)
    save = _wants_gradient(r, k, v, w, u, state)
    return ops.wkv6_forward(r, k, v, w, u, state, cu_seqlens, code, save)[:2]


def wkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Optional[Tensor] = None,
    *,
    decay: str = "log",
    cu_seqlens: Optional[Tensor] = None,
    algorithm: str = "auto",
) -> Tuple[Tensor, Tensor]:
    """RWKV-7's (Goose's) attention, a generalised delta rule (arXiv 2503.14456, section 4).

    With S the state before token t, a head: ``sa = S a``, ``S <- S diag(d) + sa b^T + v k^T``, ``y = S r``: y is of
    the state **after** the update.

    Args:
        r, k, v, a, b: ``[B, T, H, N]``, of one dtype; usually ``a = -kk`` and ``b = kk * gate`` with ``kk`` the
            normalised key. dtypes, T, N and strides as in :func:`wkv6`.
        w: ``[B, T, H, N]``, what the decay d is made of; the dtype of r, or float32.
        state, cu_seqlens, algorithm: as in :func:`wkv6`.
        decay: ``"log"`` (default): d = e^w; ``"exp"``: d = e^(-e^w); ``"sigmoid"``:
            d = e^(-e^(-1/2) sigmoid(w)), the clamped form of RWKV-7's raw logits, d in (0.545, 1).

    Returns, Raises: as :func:`wkv6`.
    """
    code = _options("wkv7", r, decay, algorithm)
    r, k, v, a, b, w, state = _under_autocast((r, k, v, a, b), (w,), state)
    save = _wants_gradient(r, w, k, v, a, b, state)
    return ops.wkv7_forward(r, w, k, v, a, b, state, cu_seqlens, code, save)[:2]


def wkv4_step_(k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Tensor, slots: Optional[Tensor] = None) -> Tensor:
    """Decode with :func:`wkv4`, updating rows of a pool of states in place.

    Args:
        k, v: ``[B, C]`` (one token a sequence) or ``[B, T, C]`` (a few).
        w, u: ``[C]``.
        state: ``[P, 3, C]``, float32, bfloat16 or float16 (float64 for float64 inputs); **updated in place**.
        slots: int32 ``[B]``, distinct: the row of each sequence. Default: row b for sequence b, P = B. Rows that are
            not named stay as they are, bit for bit.

    Returns: y in the shape and dtype of k. Raises: as :func:`wkv4`; nothing is changed then.
    """
    return ops.wkv4_step_(k, v, w, u, state, slots)


def wkv5_step_(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    state: Tensor,
    slots: Optional[Tensor] = None,
    *,
    decay: str = "exp",
) -> Tensor:
    """Decode with :func:`wkv5`, in place; arguments as :func:`wkv6_step_`, but w is ``[H, N]``."""
    return ops.wkv5_step_(r, k, v, w, u, state, slots, _decay_code("wkv5_step_", decay))


def wkv6_step_(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    state: Tensor,
    slots: Optional[Tensor] = None,
    *,
    decay: str = "exp",
) -> Tensor:
    """Decode with :func:`wkv6`, updating rows of a pool of states in place.

    Args:
        r, k, v, w: ``[B, H, N]`` (one token a sequence) or ``[B, T, H, N]`` (a few).
        u: ``[H, N]``.
        state: ``[P, H, N_value, N_key]``, float32, bfloat16 or float16 (float64 for float64 inputs); **updated in
            place**. Arithmetic is in float32 whatever the pool holds.
        slots: int32 ``[B]``, distinct: the row of each sequence. Default: row b for sequence b, P = B. Rows that are
            not named stay as they are, bit for bit.
        decay: as in :func:`wkv6`.

    Returns: y in the shape and dtype of r. Raises: as :func:`wkv6`; nothing is changed then.
    """
    return ops.wkv6_step_(r, k, v, w, u, state, slots, _decay_code("wkv6_step_", decay))


def wkv7_step_(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor,
    slots: Optional[Tensor] = None,
    *,
    decay: str = "log",
) -> Tensor:
    """Decode with :func:`wkv7`, updating rows of a pool of states in place; state and slots as :func:`wkv6_step_`.

    Args:
        r, w, k, v, a, b: ``[B, H, N]`` (one token a sequence) or ``[B, T, H, N]`` (a few).
    """
    return ops.wkv7_step_(r, w, k, v, a, b, state, slots, _decay_code("wkv7_step_", decay))


def cpu_isa() -> str:
    """The instruction set that the CPU kernels use in this process: ``avx512``, ``avx2`` or ``portable``."""
    return ops.cpu_isa()


def _decay_code(op: str, decay: str) -> int:
    code = DECAYS.get(decay)
    if code is None:
        raise ValueError(f"{op}: decay must be one of {', '.join(map(repr, DECAYS))}, got {decay!r}")
    return code


def _options(op: str, first: Tensor, decay: str, algorithm: str) -> int:
    if algorithm not in ALGORITHMS:
        raise ValueError(f"{op}: algorithm must be one of {', '.join(map(repr, ALGORITHMS))}, got {algorithm!r}")
    if algorithm == "chunk":
        raise ValueError(
            f"{op}: algorithm 'chunk' runs on tensor cores, which this build has no kernels for; expected 'auto' or "
            f"'recurrent', got 'chunk' for a tensor on {first.device}"
        )
    return _decay_code(op, decay)


def _wants_gradient(*tensors: Optional[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _under_autocast(same: tuple, free: tuple, state: Optional[Tensor]) -> tuple:
    """Inside torch.autocast: `same` in the autocast dtype, `free` there or in float32, the state in float32."""
    device = same[0].device.type
    if not torch.is_autocast_enabled(device) or any(t.dtype == torch.float64 for t in same):
        return (*same, *free, state)
    low = torch.get_autocast_dtype(device)
    same = tuple(t.to(low) for t in same)
    free = tuple(t if t.dtype == torch.float32 else t.to(low) for t in free)
    return (*same, *free, state if state is None else state.float())


# --------------------------------------------------------------------------------------------------------------
# Fakes: shapes and dtypes without data
# --------------------------------------------------------------------------------------------------------------


def _compute_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _blocks(tokens: int) -> int:
    return (tokens + CHECKPOINT_TOKENS - 1) // CHECKPOINT_TOKENS


def _fake_heads_forward(r: Tensor, cu_seqlens: Optional[Tensor], save: bool) -> Tuple[Tensor, Tensor, Tensor]:
    batch, tokens, heads, size = r.shape
    sequences = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    blocks = 0
    if save:
        blocks = batch * _blocks(tokens) if cu_seqlens is None else tokens // CHECKPOINT_TOKENS + sequences
    compute = _compute_dtype(r)
    state = r.new_empty((sequences, heads, size, size), dtype=compute)
    return r.new_empty(r.shape), state, r.new_empty((blocks, heads, size, size), dtype=compute)


def _fake_state(r: Tensor, cu_seqlens: Optional[Tensor]) -> Tensor:
    batch, _, heads, size = r.shape
    sequences = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return r.new_empty((sequences, heads, size, size), dtype=_compute_dtype(r))


def _empty(tensor: Tensor) -> Tensor:
    return tensor.new_empty(tensor.shape)


@torch.library.register_fake(add_op_namespace_prefix("wkv4_forward"))
def _(k, v, w, u, state, save):
    batch, tokens, channels = k.shape
    compute = _compute_dtype(k)
    blocks = batch * _blocks(tokens) if save else 0
    final_state = k.new_empty((batch, 3, channels), dtype=compute)
    return _empty(k), final_state, k.new_empty((blocks, 3, channels), dtype=compute)


@torch.library.register_fake(add_op_namespace_prefix("wkv4_backward"))
def _(k, v, w, u, checkpoints, grad_y, grad_state):
    batch, _, channels = k.shape
    state = k.new_empty((batch, 3, channels), dtype=_compute_dtype(k))
    return _empty(k), _empty(v), _empty(w), _empty(u), state


@torch.library.register_fake(add_op_namespace_prefix("wkv4_step_"))
def _(k, v, w, u, state, slots):
    return _empty(k)


@torch.library.register_fake(add_op_namespace_prefix("wkv5_forward"))
def _(r, k, v, w, u, state, cu_seqlens, decay, save):
    return _fake_heads_forward(r, cu_seqlens, save)


@torch.library.register_fake(add_op_namespace_prefix("wkv6_forward"))
def _(r, k, v, w, u, state, cu_seqlens, decay, save):
    return _fake_heads_forward(r, cu_seqlens, save)


@torch.library.register_fake(add_op_namespace_prefix("wkv7_forward"))
def _(r, w, k, v, a, b, state, cu_seqlens, decay, save):
    return _fake_heads_forward(r, cu_seqlens, save)


@torch.library.register_fake(add_op_namespace_prefix("wkv5_backward"))
def _(r, k, v, w, u, checkpoints, grad_y, grad_state, cu_seqlens, decay):
    return _empty(r), _empty(k), _empty(v), _empty(w), _empty(u), _fake_state(r, cu_seqlens)


@torch.library.register_fake(add_op_namespace_prefix("wkv6_backward"))
def _(r, k, v, w, u, checkpoints, grad_y, grad_state, cu_seqlens, decay):
    return _empty(r), _empty(k), _empty(v), _empty(w), _empty(u), _fake_state(r, cu_seqlens)


@torch.library.register_fake(add_op_namespace_prefix("wkv7_backward"))
def _(r, w, k, v, a, b, checkpoints, grad_y, grad_state, cu_seqlens, decay):
    return _empty(r), _empty(w), _empty(k), _empty(v), _empty(a), _empty(b), _fake_state(r, cu_seqlens)


@torch.library.register_fake(add_op_namespace_prefix("wkv5_step_"))
def _(r, k, v, w, u, state, slots, decay):
    return _empty(r)


@torch.library.register_fake(add_op_namespace_prefix("wkv6_step_"))
def _(r, k, v, w, u, state, slots, decay):
    return _empty(r)


@torch.library.register_fake(add_op_namespace_prefix("wkv7_step_"))
def _(r, w, k, v, a, b, state, slots, decay):
    return _empty(r)


# --------------------------------------------------------------------------------------------------------------
# Gradients
# --------------------------------------------------------------------------------------------------------------


class _Gradient:
    """How one op is differentiated: `inputs` float tensors, then the state, then what is not differentiable."""

    def __init__(self, name: str, inputs: int, options: int):
        self.name = name
        self.inputs = inputs
        self.options = options  # trailing arguments between the state and `save` (cu_seqlens, decay)

    def setup_context(self, ctx, inputs, output):
        tensors = inputs[: self.inputs]
        state = inputs[self.inputs]
        cu_seqlens = inputs[self.inputs + 1] if self.options else None
        ctx.save_for_backward(*tensors, state, cu_seqlens, output[2])
        ctx.decay = inputs[self.inputs + 2] if self.options else None
        ctx.saved_checkpoints = inputs[-1]
        ctx.mark_non_differentiable(output[2])
        ctx.set_materialize_grads(False)

    def backward(self, ctx, grad_y, grad_state, _):
        *tensors, state, cu_seqlens, checkpoints = ctx.saved_tensors
        options = (cu_seqlens, ctx.decay) if self.options else ()
        if not ctx.saved_checkpoints:
            # The op was called without `save` although a gradient was wanted: run it again.
            forward = getattr(ops, f"{self.name}_forward")
            checkpoints = forward(*tensors, state, *options, True)[2]
        backward = getattr(ops, f"{self.name}_backward")
        *gradients, grad_initial = backward(*tensors, checkpoints, grad_y, grad_state, *options)
        return (*gradients, grad_initial if state is not None else None, *(None for _ in options), None)

    def refuse(self, ctx, *gradients):
        raise RuntimeError(f"{self.name}: expected a first derivative, got a second (its gradient is not differentiable)")


_WKV4 = _Gradient("wkv4", 4, 0)
_WKV5 = _Gradient("wkv5", 5, 2)
_WKV6 = _Gradient("wkv6", 5, 2)
_WKV7 = _Gradient("wkv7", 6, 2)

torch.library.register_autograd(
    add_op_namespace_prefix("wkv4_forward"), _WKV4.backward, setup_context=_WKV4.setup_context
)
torch.library.register_autograd(
    add_op_namespace_prefix("wkv5_forward"), _WKV5.backward, setup_context=_WKV5.setup_context
)
torch.library.register_autograd(
    add_op_namespace_prefix("wkv6_forward"), _WKV6.backward, setup_context=_WKV6.setup_context
)
torch.library.register_autograd(
    add_op_namespace_prefix("wkv7_forward"), _WKV7.backward, setup_context=_WKV7.setup_context
)
torch.library.register_autograd(add_op_namespace_prefix("wkv4_backward"), _WKV4.refuse)
torch.library.register_autograd(add_op_namespace_prefix("wkv5_backward"), _WKV5.refuse)
torch.library.register_autograd(add_op_namespace_prefix("wkv6_backward"), _WKV6.refuse)
torch.library.register_autograd(add_op_namespace_prefix("wkv7_backward"), _WKV7.refuse)
