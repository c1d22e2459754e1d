"""Other people's kernels, each as far as it is installed: fla-core, flash-rwkv 0.3.0 and FlashRWKV2."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.cases import WKV7_FASTEST, Case
from benchmarks.gpu.contestants import Contestant

# Each takes a case and may take its time: imports compile, first calls tune themselves.
Peer = Callable[[Case], Contestant]
# Takes a token a sequence, and empty states; gives the token as it takes it, and a function that decodes it.
StepPeer = Callable[[Case, Tensor], tuple[Case, Callable[[], Tensor]]]


def compile_ahead(folder: Path, operators: Sequence[str]) -> None:
    """Begin what flash-rwkv's import does with nvcc for a minute, in a process of its own.

    Torch's lock on the files has the import that needs them wait for it. What is timed until then is timed on
    the GPU, which nvcc does not use.
    """
    if {"wkv5", "wkv6"} & set(operators):
        code = f"import sys; sys.path.append({str(folder)!r}); import flash_rwkv.rwkv5"
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def peers_of(operator: str) -> dict[str, Peer]:
    """By name, for forward and backward."""
    return {
        "wkv4": {"fla fused_recurrent": _fla_wkv4},
        "wkv5": {"flash-rwkv 0.3.0": _flash_rwkv5},
        "wkv6": {
            "fla chunk": _fla_wkv6("chunk_rwkv6"),
            "fla fused_recurrent": _fla_wkv6("fused_recurrent_rwkv6"),
            "flash-rwkv 0.3.0": _flash_rwkv6,
        },
        "wkv7": {
            "fla chunk": _fla_wkv7({}),
            "fla chunk, safe_gate": _fla_wkv7({"safe_gate": True}),
            "FlashRWKV2": _flashrwkv2,
        },
    }[operator]


def step_peers_of(operator: str, pool_dtype: torch.dtype) -> dict[str, StepPeer]:
    """By name, for decoding."""
    if operator != "wkv7":
        return {}
    peers = {"FlashRWKV2": _flashrwkv2_step}
    if pool_dtype == torch.float32:
        peers["fla fused_recurrent"] = _fla_wkv7_step
    return peers


def _log_decay(case: Case) -> Case:
    """The same with the logarithm of the decay for its raw form, rounded as the inputs are."""
    w = case.inputs["w"]
    return Case(case.operator, {**case.inputs, "w": (-w.float().exp()).to(w.dtype)}, "log")


def _fla_wkv4(case: Case) -> Contestant:
    from fla.ops.rwkv4 import fused_recurrent_rwkv4

    # It takes log(-w), and the state with a dimension for tokens.
    state = case.empty_state().unsqueeze(2)
    return Contestant(
        "fla fused_recurrent",
        case,
        lambda k, v, w, u: (fused_recurrent_rwkv4((-w).log(), u, k, v, state)[0], None),
    )


def _fla_wkv6(function: str) -> Peer:
    def prepare(case: Case) -> Contestant:
        import fla.ops.rwkv6

        operator = getattr(fla.ops.rwkv6, function)

        def run(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> tuple[Tensor, None]:
            return operator(r, k, v, w, u, scale=1.0)[0], None

        return Contestant(f"fla {function.removesuffix('_rwkv6')}", _log_decay(case), run)

    return prepare


def _fla_wkv7(options: dict) -> Peer:
    def prepare(case: Case) -> Contestant:
        from fla.ops.rwkv7 import chunk_rwkv7

        def run(*inputs: Tensor) -> tuple[Tensor, None]:
            return chunk_rwkv7(*inputs, scale=1.0, **options)[0], None

        return Contestant(", ".join(["fla chunk", *options]), case, run)

    return prepare


def _fla_wkv7_step(case: Case, pool: Tensor) -> tuple[Case, Callable[[], Tensor]]:
    from fla.ops.rwkv7 import fused_recurrent_rwkv7

    inputs = [x.unsqueeze(1) for x in case.inputs.values()]
    state = pool

    def step() -> Tensor:
        nonlocal state  # a new tensor each time: it does not update in place
        y, state = fused_recurrent_rwkv7(*inputs, scale=1.0, initial_state=state, output_final_state=True)
        return y[:, 0]

    return case, step


def _flash_rwkv5(case: Case) -> Contestant:
    # Compiles with nvcc. Our own pip package has the same name, but no such module.
    from flash_rwkv.rwkv5 import rwkv5_cuda_linear_attention as operator

    state = case.empty_state()

    def run(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        flat = (x.flatten(2) for x in (r, k, v))
        y, final = operator(*flat, w.flatten(), u.flatten(), state)
        return y.view(r.shape), final

    return Contestant("flash-rwkv 0.3.0", case, run)


def _flash_rwkv6(case: Case) -> Contestant:
    from flash_rwkv.rwkv6 import rwkv6_cuda_linear_attention as operator

    state = case.empty_state()

    def run(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        return operator(*(x.flatten(2) for x in (r, k, v, w)), u, state)

    return Contestant("flash-rwkv 0.3.0", case, run, trains=False)


def _logits(case: Case) -> Case:
    """The same with the logits of RWKV-7's decay for its logarithm, rounded as the inputs are."""
    w = case.inputs["w"]
    logits = torch.logit((-w.float() / WKV7_FASTEST).clamp(1e-4, 1 - 1e-4)).to(w.dtype)
    return Case(case.operator, {**case.inputs, "w": logits}, "sigmoid")


def _flashrwkv2(case: Case) -> Contestant:
    from flashrwkv2 import pretrain_tmix_wkv7_recurrent_bf16 as operator

    def run(*inputs: Tensor) -> tuple[Tensor, None]:
        return operator(*(x.flatten(2) for x in inputs)).view(inputs[0].shape), None

    return Contestant("FlashRWKV2", _logits(case), run)


def _flashrwkv2_step(case: Case, pool: Tensor) -> tuple[Case, Callable[[], Tensor]]:
    import flashrwkv2 as peer

    case = _logits(case)

    batch = pool.shape[0]
    kind = "fp32io16" if pool.dtype == torch.float32 else "fp16"
    state = getattr(peer, f"prepare_tmix_wkv7_recurrent_{kind}_state_from_tensor")(pool)
    operator = getattr(peer, f"infer_tmix_wkv7_recurrent_{kind}_forward_varlen")
    bounds = torch.arange(batch + 1, dtype=torch.int32, device=pool.device)
    rows = bounds[:-1].clone()
    ticket = peer.prepare_tmix_wkv7_recurrent_metadata(
        bounds, rows, state_pool_size=batch, total_tokens=batch, max_seqlen=1
    )
    inputs = list(case.inputs.values())

    def step() -> Tensor:
        return operator(
            *inputs,
            state=state,
            cu_seqlens=bounds,
            state_indices=rows,
            max_seqlen=1,
            validated_metadata=ticket,
        )

    return case, step
