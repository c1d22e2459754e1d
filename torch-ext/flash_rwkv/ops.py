"""The WKV operators: public functions. ``fakes`` and ``gradients`` hold what Torch needs besides.

Letters in shapes: B batch, T tokens, H heads, N head size, C = H·N channels, S sequences, P rows of a pool of
states. The matrix state is **value-major**, ``[.., N_value, N_key]``, as in BlinkDL's kernels;
flash-linear-attention and Hugging Face's Python loops keep it key-major, so transpose the last two dimensions
when moving states across.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from . import fakes, gradients  # noqa: F401  (importing them registers them)
from ._ops import ops

DECAYS = {"log": 0, "exp": 1, "sigmoid": 2}
ALGORITHMS = ("auto", "recurrent", "chunk")
CHUNK_DTYPES = (torch.bfloat16, torch.float16)
CHUNK_HEAD_SIZES = (64, 128)
# Below it "auto" goes token by token, which is then about as fast.
LEAST_CHUNK_TOKENS = 32

# Overloads, so that a step need not look for its own.
_wkv4_step = ops.wkv4_step_.default
_wkv5_step = ops.wkv5_step_.default
_wkv6_step = ops.wkv6_step_.default
_wkv7_step = ops.wkv7_step_.default


def wkv4(k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """RWKV-4's attention, a running softmax a channel (arXiv 2305.13048, section 3 and appendix D).

    Args:
        k, v: ``[B, T, C]``, float32, bfloat16 or float16 (float64 on the CPU), of one dtype; any T >= 0.
        w: ``[C]``, the log decay a token, ``-exp(time_decay) < 0``; the dtype of k, or float32.
        u: ``[C]``, ``time_first``, the bonus of the token itself; the dtype of k, or float32.
        state: ``[B, 3, C]`` = (p, q, o), numerator and denominator scaled by ``e^o``; float32 (float64 for
            float64 inputs). Default: the empty past, (0, 0, -1e38).

    Returns:
        y ``[B, T, C]`` in the dtype of k, and the state after the last token, ``[B, 3, C]``. Both are
        differentiable in every input.

    Raises:
        RuntimeError: an argument has the wrong shape, dtype or device; the message names it.
    """
    _tensors("wkv4", k=k, v=v, w=w, u=u)
    k, v, w, u, state = _under_autocast((k, v), (w, u), state)
    return ops.wkv4_forward(k, v, w, u, state, _wants_gradient(k, v, w, u, state))[:2]


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
    """RWKV-5's (Eagle's) attention with a matrix state and one decay a channel (arXiv 2404.05892, section 3).

    As :func:`wkv6`, but ``w`` is ``[H, N]``: the decay does not depend on the token.
    """
    _tensors("wkv5", r=r, k=k, v=v, w=w, u=u)
    code = _options("wkv5", decay, algorithm)
    r, k, v, w, u, state = _under_autocast((r, k, v), (w, u), state)
    save = _wants_gradient(r, k, v, w, u, state)
    if _takes_chunks(5, r, algorithm, save):
        return ops.wkv5_chunk_forward(r, k, v, w, u, state, cu_seqlens, code, save)[:2]
    return ops.wkv5_forward(r, k, v, w, u, state, cu_seqlens, code, save)[:2]


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
    """RWKV-6's (Finch's) attention: a matrix state, a decay a token (arXiv 2404.05892, section 4).

    With S the state before token t, a head: ``y_i = sum_j r_j (S_ij + u_j k_j v_i)``, then
    ``S_ij <- d_j S_ij + k_j v_i``.

    Args:
        r, k, v: receptance, key, value, ``[B, T, H, N]``, float32, bfloat16 or float16 (float64 on the CPU),
            of one dtype; any T >= 0, N a multiple of 8 from 8 to 256. Any strides.
        w: ``[B, T, H, N]``, what the decay d is made of; the dtype of r, or float32.
        u: ``[H, N]``, ``time_first``, the bonus of the token itself; the dtype of r, or float32.
        state: ``[B, H, N_value, N_key]`` before the first token, float32 (float64 for float64 inputs).
            Default: zeros. With cu_seqlens ``[S, H, N_value, N_key]``.
        decay: ``"exp"`` (default): d = e^(-e^w), RWKV-5's and 6's raw form; ``"log"``: d = e^w;
            ``"sigmoid"``: d = e^(-e^(-1/2) sigmoid(w)), RWKV-7's.
        cu_seqlens: int32 ``[S + 1]``, from 0 to T: sequences packed into one row, B = 1; lengths may be 0. On
            CUDA the values are not checked, which would mean to wait for the device; results are wrong then.
        algorithm: ``"recurrent"``: token by token in float32, bitwise the same however tokens are split over
            calls, batched or packed. ``"chunk"``: matrix form on tensor cores, for bfloat16 and float16 and
            head sizes 64 and 128, on CUDA devices of capability 8.0 and later; with a gradient where a block
            has shared memory enough, 154 KiB for head size 128 (8.0, 9.0, 10.0). ``"auto"`` (default):
            ``"chunk"`` from 32 tokens on, where it is there, otherwise ``"recurrent"``.

    Returns:
        y ``[B, T, H, N]`` in the dtype of r, and the state after the last token in the layout of ``state``.
        Both are differentiable in every floating-point input.

    Raises:
        ValueError: unknown decay or algorithm; the message names what there is.
        RuntimeError: wrong shape, dtype, device or cu_seqlens; the message names the argument, what was
            expected and what came.
    """
    _tensors("wkv6", r=r, k=k, v=v, w=w, u=u)
    code = _options("wkv6", decay, algorithm)
    r, k, v, w, u, state = _under_autocast((r, k, v), (w, u), state)
    save = _wants_gradient(r, k, v, w, u, state)
    if _takes_chunks(6, r, algorithm, save):
        return ops.wkv6_chunk_forward(r, k, v, w, u, state, cu_seqlens, code, save)[:2]
    return ops.wkv6_forward(r, k, v, w, u, state, cu_seqlens, code, save)[:2]


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
    """RWKV-7's (Goose's) attention, a generalised delta rule (arXiv 2503.14456, section 4).

    With S the state before token t, a head: ``sa = S a``, ``S <- S diag(d) + sa b^T + v k^T``, ``y = S r``:
    y is of the state **after** the update.

    Args:
        r, k, v, a, b: ``[B, T, H, N]``, of one dtype; usually ``a = -kk`` and ``b = kk * gate`` with ``kk``
            the normalised key. dtypes, T, N and strides as in :func:`wkv6`.
        w: ``[B, T, H, N]``, what the decay d is made of; the dtype of r, or float32.
        state, cu_seqlens: as in :func:`wkv6`.
        algorithm: as in :func:`wkv6`; gradients of head size 128 take more shared memory, see the README.
        decay: ``"log"`` (default): d = e^w; ``"exp"``: d = e^(-e^w); ``"sigmoid"``:
            d = e^(-e^(-1/2) sigmoid(w)), the clamped form of RWKV-7's raw logits, d in (0.545, 1).

    Returns, Raises: as :func:`wkv6`.
    """
    _tensors("wkv7", r=r, w=w, k=k, v=v, a=a, b=b)
    code = _options("wkv7", decay, algorithm)
    r, k, v, a, b, w, state = _under_autocast((r, k, v, a, b), (w,), state)
    save = _wants_gradient(r, w, k, v, a, b, state)
    if _takes_chunks(7, r, algorithm, save):
        return ops.wkv7_chunk_forward(r, w, k, v, a, b, state, cu_seqlens, code, save)[:2]
    return ops.wkv7_forward(r, w, k, v, a, b, state, cu_seqlens, code, save)[:2]


def wkv4_step_(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Tensor, slots: Tensor | None = None
) -> Tensor:
    """Decode with :func:`wkv4`, updating rows of a pool of states in place.

    Args:
        k, v: ``[B, C]`` (one token a sequence) or ``[B, T, C]`` (a few).
        w, u: ``[C]``.
        state: ``[P, 3, C]``, float32, bfloat16 or float16 (float64 for float64 inputs); **updated in place**.
        slots: int32 ``[B]``, as in :func:`wkv6_step_`.

    Returns: y in the shape and dtype of k. Raises: as :func:`wkv4`; nothing is changed then.
    """
    if _needs_care(k):
        _check_step("wkv4_step_", k=k, v=v, w=w, u=u, state=state)
        k, v, w, u, _ = _under_autocast((k, v), (w, u), None)
    y = _wkv4_step(k, v, w, u, state, slots)
    _note_update(state)
    return y


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
    """Decode with :func:`wkv5`, in place; arguments as :func:`wkv6_step_`, but w is ``[H, N]``."""
    code = _decay_code("wkv5_step_", decay)
    if _needs_care(r):
        _check_step("wkv5_step_", r=r, k=k, v=v, w=w, u=u, state=state)
        r, k, v, w, u, _ = _under_autocast((r, k, v), (w, u), None)
    y = _wkv5_step(r, k, v, w, u, state, slots, code)
    _note_update(state)
    return y


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
    """Decode with :func:`wkv6`, updating rows of a pool of states in place.

    Args:
        r, k, v, w: ``[B, H, N]`` (one token a sequence) or ``[B, T, H, N]`` (a few).
        u: ``[H, N]``.
        state: ``[P, H, N_value, N_key]``, float32, bfloat16 or float16 (float64 for float64 inputs);
            **updated in place**. Arithmetic is in float32 whatever the pool holds.
        slots: int32 ``[B]``, distinct: the row of each sequence. Default: row b for sequence b, P = B. Rows
            that are not named stay as they are, bit for bit. On CUDA the values are not checked; one outside
            the pool changes nothing and gives NaN.
        decay: as in :func:`wkv6`.

    Returns: y in the shape and dtype of r. Raises: as :func:`wkv6`; nothing is changed then.
    """
    code = _decay_code("wkv6_step_", decay)
    if _needs_care(r):
        _check_step("wkv6_step_", r=r, k=k, v=v, w=w, u=u, state=state)
        r, k, v, w, u, _ = _under_autocast((r, k, v), (w, u), None)
    y = _wkv6_step(r, k, v, w, u, state, slots, code)
    _note_update(state)
    return y


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
    """Decode with :func:`wkv7`, updating a pool of states in place; state and slots as :func:`wkv6_step_`.

    Args:
        r, w, k, v, a, b: ``[B, H, N]`` (one token a sequence) or ``[B, T, H, N]`` (a few).
    """
    code = _decay_code("wkv7_step_", decay)
    if _needs_care(r):
        _check_step("wkv7_step_", r=r, w=w, k=k, v=v, a=a, b=b, state=state)
        r, k, v, a, b, w, _ = _under_autocast((r, k, v, a, b), (w,), None)
    y = _wkv7_step(r, w, k, v, a, b, state, slots, code)
    _note_update(state)
    return y


def cpu_isa() -> str:
    """The instruction set that the CPU kernels use in this process: ``avx512``, ``avx2`` or ``portable``.

    ``neon`` on aarch64; ``torch`` where there are none and the operators are plain PyTorch.
    """
    return ops.cpu_isa()


def _tensors(op: str, **arguments: Tensor) -> None:
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")


def _decay_code(op: str, decay: str) -> int:
    code = DECAYS.get(decay) if isinstance(decay, str) else None
    if code is None:
        raise ValueError(f"{op}: decay must be one of {', '.join(map(repr, DECAYS))}, got {decay!r}")
    return code


def _options(op: str, decay: str, algorithm: str) -> int:
    if algorithm not in ALGORITHMS:
        raise ValueError(
            f"{op}: algorithm must be one of {', '.join(map(repr, ALGORITHMS))}, got {algorithm!r}"
        )
    return _decay_code(op, decay)


def _takes_chunks(version: int, first: Tensor, algorithm: str, wants_gradient: bool) -> bool:
    """Whether a call goes in matrix form: if it says so, or leaves it to us where that is there and pays."""
    if algorithm != "auto":
        return algorithm == "chunk"
    if not first.is_cuda or first.dtype not in CHUNK_DTYPES or first.dim() != 4:
        return False
    if first.shape[1] < LEAST_CHUNK_TOKENS:
        return False
    # Constants, since while tracing the head size may be a symbol.
    sizes = [size for size in CHUNK_HEAD_SIZES if first.shape[3] == size]
    return any(_has_chunks(version, size, first.device.index, wants_gradient) for size in sizes)


@torch.compiler.assume_constant_result
def _has_chunks(version: int, head_size: int, device_index: int, wants_gradient: bool) -> bool:
    return _ask_for_chunks(version, head_size, device_index, wants_gradient)


@functools.cache
def _ask_for_chunks(*question) -> bool:
    return ops.has_chunks(*question)


def _wants_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _needs_care(first: Tensor) -> bool:
    """Whether a step asks for more than its op sees to itself; that is short, because steps are."""
    return torch.is_grad_enabled() or not isinstance(first, Tensor) or _casts(first)


def _check_step(op: str, **arguments: Tensor) -> None:
    """The in-place step has no gradient: say so."""
    _tensors(op, **arguments)
    if not torch.is_grad_enabled():
        return
    for name, tensor in arguments.items():
        if tensor.requires_grad:
            raise RuntimeError(
                f"{op}: expected {name} without requires_grad, got one that wants a gradient, which the "
                f"in-place step does not have; use {op[:4]}, or torch.no_grad()"
            )


def _note_update(state: Tensor) -> None:
    """Let autograd see that the state has changed."""
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(state)


def _casts(tensor: Tensor) -> bool:
    """Whether autocast is on for its device; Torch 2.11 cannot trace `torch.amp.is_autocast_available`.

    Asking for ``device.type`` takes five times as long as asking for the two devices that come first.
    """
    if tensor.is_cuda:
        return torch.is_autocast_enabled("cuda")
    if tensor.is_cpu:
        return torch.is_autocast_enabled("cpu")
    return tensor.device.type in ("xpu", "mps") and torch.is_autocast_enabled(tensor.device.type)


def _under_autocast(same: tuple, free: tuple, state: Tensor | None) -> tuple:
    """Inside torch.autocast: `same` in its dtype, `free` there or in float32, the state in float32."""
    if not _casts(same[0]) or any(t.dtype == torch.float64 for t in same):
        return (*same, *free, state)
    low = torch.get_autocast_dtype(same[0].device.type)
    same = tuple(t.to(low) for t in same)
    free = tuple(t if t.dtype == torch.float32 else t.to(low) for t in free)
    return (*same, *free, state if state is None else state.float())
