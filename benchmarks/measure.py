"""One operator measured: times in turns with the baseline's, errors, and the bars they are held to."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch

from benchmarks.accuracy import errors, relative_error
from benchmarks.baseline import Baseline, baselines
from benchmarks.cases import Case
from benchmarks.timing import medians

# What the project promises, on two threads: of forward over the plain loop (with the decay given or computed,
# whichever is faster), of forward and backward over forward, of microseconds of a step called from Python,
# and of the relative error in float32.
FORWARD_BAR = {"wkv6": 0.45, "wkv7": 0.45}
BACKWARD_BAR = 5.5
STEP_BAR = 50.0
ERROR_BAR = 1e-5

STEP_CALLS = 200


def measure(
    kernel: ModuleType, case: Case, threads: int, repeats: int, on_round: Callable[[], None] = lambda: None
) -> dict:
    """Everything about one operator, ready for JSON; times in milliseconds, of a step in microseconds."""
    loops = baselines(case.operator, case.inputs, case.given_decay(kernel.reference), threads)
    runs: dict[str, Callable[[], object]] = {
        "forward": _forward(kernel, case),
        "forward_backward": _forward_backward(kernel, case),
        **{loop.name: loop.run for loop in loops},
    }
    times = medians(runs, repeats, on_round=on_round)
    step = medians({"step": _step(kernel, case.first_token())}, repeats, STEP_CALLS)["step"]
    fastest = min(loops, key=lambda loop: times[loop.name])
    plain = min((loop for loop in loops if loop.plain), key=lambda loop: times[loop.name])
    result = {
        "operator": case.operator,
        "shape": case.shape,
        "decay": case.decay,
        "dtype": "float32",
        "forward_ms": times["forward"] * 1e3,
        "forward_backward_ms": times["forward_backward"] * 1e3,
        "step_us": step * 1e6,
        "baseline_ms": {loop.name: times[loop.name] * 1e3 for loop in loops},
        "plain_ms": times[plain.name] * 1e3,
        "fastest_ms": times[fastest.name] * 1e3,
        "forward_over_plain": times["forward"] / times[plain.name],
        "forward_over_fastest": times["forward"] / times[fastest.name],
        "forward_backward_over_forward": times["forward_backward"] / times["forward"],
        "errors": {**errors(kernel, case), "baseline": _baseline_error(kernel, case, loops)},
    }
    return {**result, "bars": bars(result)}


def bars(result: dict) -> dict[str, dict]:
    """Each promise that concerns this operator: what was measured, the bar, and whether it holds."""
    worst = max(result["errors"][name] for name in ("forward", "backward", "step"))
    found = {
        "forward / plain C++ loop": (result["forward_over_plain"], FORWARD_BAR.get(result["operator"])),
        "forward + backward / forward": (result["forward_backward_over_forward"], BACKWARD_BAR),
        "step, µs": (result["step_us"], STEP_BAR),
        "error": (worst, ERROR_BAR),
    }
    return {
        name: {"value": value, "bar": bar, "holds": bool(value <= bar)}
        for name, (value, bar) in found.items()
        if bar is not None
    }


def _forward(kernel: ModuleType, case: Case) -> Callable[[], object]:
    operator = getattr(kernel, case.operator)
    inputs = list(case.inputs.values())
    return lambda: operator(*inputs, **case.options)


def _forward_backward(kernel: ModuleType, case: Case) -> Callable[[], object]:
    operator = getattr(kernel, case.operator)
    leaves = [x.clone().requires_grad_() for x in case.inputs.values()]
    with torch.no_grad():
        grads = [torch.randn_like(x) for x in operator(*leaves, **case.options)]
    return lambda: torch.autograd.grad(operator(*leaves, **case.options), leaves, grads)


def _step(kernel: ModuleType, case: Case) -> Callable[[], object]:
    operator = getattr(kernel, f"{case.operator}_step_")
    inputs = list(case.inputs.values())
    state = case.empty_state()
    return lambda: operator(*inputs, state, **case.options)


def _baseline_error(kernel: ModuleType, case: Case, loops: list[Baseline]) -> float:
    """The worst of the loops against the kernel: they must be doing the same work."""
    y, state = _forward(kernel, case)()
    for loop in loops:
        loop.run()
    error = max(max(relative_error(loop.y, y), relative_error(loop.state, state)) for loop in loops)
    if not error < 1e-4:
        raise RuntimeError(
            f"{case.operator}: baseline and kernel disagree by {error:.1e}: times mean nothing"
        )
    return error
