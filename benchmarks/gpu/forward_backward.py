"""Forward and backward of one shape: ours and the peers' in turns, with errors, bytes and the floor."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from benchmarks.accuracy import Results, reference_results, worst_errors
from benchmarks.cases import Case, make_case
from benchmarks.gpu.contestants import Contestant, ours
from benchmarks.gpu.limit import message
from benchmarks.gpu.peers import peers_of
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.shapes import Shape, dtype_name
from benchmarks.gpu.timing import Stopwatch, Time

SECONDS = 2.0  # for the rounds of a shape
ROUNDS = range(10, 61)
FEW_TOKENS = 8192  # for the reference, which goes token by token


def measure(setting: Setting, shape: Shape) -> dict:
    """Everything about one shape, ready for JSON."""
    reference = setting.kernel.reference
    case, grad_y = _inputs(setting, shape)
    own = ours(setting.kernel, case, shape.algorithm)
    ready = {"flash-rwkv": own}
    results = {"flash-rwkv": own.results(grad_y)}
    peers, their_results, failed = _enter_peers(setting, shape, case, grad_y)
    ready |= peers
    results |= their_results
    setting.say(f"{shape.operator} {shape}: errors")
    expected = {
        id(each): [
            (head, reference_results(reference, each, grad_y, head, torch.float64))
            for head in error_heads(case)
        ]
        for each in {id(one.case): one.case for one in ready.values()}.values()
    }
    errors = {
        name: worst_errors(one.case, results.pop(name), expected[id(one.case)]) for name, one in ready.items()
    }
    # The matrix form's bars are numbers of their own.
    plain = {}
    if shape.algorithm != "chunk":
        plain = _plain_errors(setting.kernel, case, grad_y, expected[id(case)])
    expected.clear()
    setting.say(f"{shape.operator} {shape}: timing")
    times = _times(ready, grad_y, setting.watch)
    moved = moved_bytes(case)
    return {
        "shape": {
            **case.shape,
            "dtype": dtype_name(shape.dtype),
            **({"algorithm": shape.algorithm} if shape.algorithm else {}),
        },
        "decay": case.decay,
        "bytes": moved,
        "floor_ms": {what: count / setting.copy_rate * 1e3 for what, count in moved.items()},
        "plain_errors": plain,
        "contestants": [
            *(_row(name, times[name], errors[name], moved, setting.copy_rate) for name in ready),
            *({"name": name, "failed": why} for name, why in failed.items()),
        ],
    }


def prepare(setting: Setting, shape: Shape) -> None:
    """Have the peers compile what `measure` will need."""
    _enter_peers(setting, shape, *_inputs(setting, shape))


def error_heads(case: Case) -> list[int]:
    """Those that errors are measured on: the first and, unless the reference would take minutes, the last."""
    return sorted({0, case.heads - 1 if case.inputs["v"].shape[1] <= FEW_TOKENS else 0})


def moved_bytes(case: Case) -> dict[str, int]:
    """The least that must move: each input read once and each output written once, by each pass."""

    def size(tensors: list[Tensor]) -> int:
        return sum(x.numel() * x.element_size() for x in tensors)

    inputs = list(case.inputs.values())
    y = [case.inputs["v"]]
    forward = size(inputs) + size(y)
    backward = size(inputs) + size(y) + size(inputs)  # inputs and y's gradient read, gradients written
    return {"forward": forward, "forward_backward": forward + backward}


def _inputs(setting: Setting, shape: Shape) -> tuple[Case, Tensor]:
    """The case, and y's gradient."""
    device = setting.device
    case = make_case(shape.operator, shape.batch, shape.tokens, shape.heads, dtype=shape.dtype, device=device)
    generator = torch.Generator(device).manual_seed(1)
    like = case.inputs["v"]
    return case, torch.randn(like.shape, generator=generator, device=device).to(like.dtype)


def _enter_peers(
    setting: Setting, shape: Shape, case: Case, grad_y: Tensor
) -> tuple[dict[str, Contestant], dict[str, Results], dict[str, str]]:
    """Those that are ready with what they find, and why the others are not, by name."""
    ready, results, failed = {}, {}, {}
    peers = peers_of(shape.operator) if setting.preparation and shape.peers else {}
    for name, peer in peers.items():
        setting.say(f"{shape.operator} {shape}: preparing {name}")
        try:
            with setting.preparation():
                contestant = peer(case)
                found = contestant.results(grad_y)
                setting.watch.wait()
            ready[name], results[name] = contestant, found
        except Exception as error:  # whatever it is, it belongs into the table
            failed[name] = message(error)
            setting.say(f"{name}: {failed[name]}")
    return ready, results, failed


def _plain_errors(
    kernel: ModuleType, case: Case, grad_y: Tensor, expected: list[tuple[int, Results]]
) -> dict:
    """Of the same formula in plain PyTorch, on the inputs' own dtype: the worst over the same heads."""
    worst: dict[str, float] = {}
    for head, exact in expected:
        results = reference_results(kernel.reference, case, grad_y, head)
        part = case.map(lambda x, head=head: case.of_heads(x, head, head + 1))
        for what, error in worst_errors(part, results, [(0, exact)]).items():
            worst[what] = max(worst.get(what, 0.0), error)
    return worst


def _times(ready: dict[str, Contestant], grad_y: Tensor, watch: Stopwatch) -> dict[str, dict[str, Time]]:
    forward = {name: one.forward for name, one in ready.items()}
    both = {name: one.training_step(grad_y) for name, one in ready.items() if one.trains}
    times: dict[str, dict[str, Time]] = {name: {} for name in ready}
    for what, runs in (("forward", forward), ("forward_backward", both)):
        if not runs:
            continue
        once = sum(time.median for time in watch.turns(runs, rounds=2, warm=1).values())
        rounds = min(max(int(SECONDS / once), ROUNDS.start), ROUNDS.stop - 1)
        for name, time in watch.turns(runs, rounds).items():
            times[name][what] = time
    return times


def _row(name: str, times: dict[str, Time], errors: dict, moved: dict[str, int], copy_rate: float) -> dict:
    return {
        "name": name,
        "ms": {
            what: {key: value * 1e3 for key, value in time.json().items()} for what, time in times.items()
        },
        "of_copy_rate": {what: moved[what] / time.median / copy_rate for what, time in times.items()},
        "errors": errors,
    }
