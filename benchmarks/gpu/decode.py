"""One decode step: in a CUDA graph, from Python, and the part of the latter that the op itself takes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from benchmarks.accuracy import relative_error
from benchmarks.cases import Case, make_case
from benchmarks.gpu.limit import message
from benchmarks.gpu.peers import StepPeer, step_peers_of
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.shapes import BF16, StepShape, dtype_name
from benchmarks.gpu.timing import Stopwatch

# As many layers of a model take their turns, each with states of its own: these are not in the cache by then.
MOST_LAYERS = 64
STEPS_OF_ERRORS = 4  # from an empty state
CALLS = 200
CPU_CACHE = 2**20


def measure(setting: Setting, shape: StepShape) -> dict:
    """Everything about one shape, ready for JSON."""
    case = _inputs(setting, shape)
    moved = moved_bytes(case, shape.pool_dtype)
    setting.say(f"{shape.operator}_step_ {shape}")
    own = _measured(setting, _ours(setting.kernel), case, shape.pool_dtype, own=True)
    contestants = [{"name": "flash-rwkv", **own, "op_us": _op_alone(setting, case, shape.pool_dtype)}]
    for name, peer in _peers(setting, shape).items():
        try:
            _enter(setting, shape, case, name, peer)
            contestants.append({"name": name, **_measured(setting, peer, case, shape.pool_dtype)})
        except Exception as error:  # whatever it is, it belongs into the table
            contestants.append({"name": name, "failed": message(error)})
    return {
        "shape": {**step_shape(case), "state": dtype_name(shape.pool_dtype)},
        "bytes": moved,
        "floor_us": moved / setting.copy_rate * 1e6,
        "plain_errors": _plain_errors(setting.kernel, case, shape.pool_dtype),
        "contestants": contestants,
    }


def prepare(setting: Setting, shape: StepShape) -> None:
    """Have the peers compile what `measure` will need."""
    case = _inputs(setting, shape)
    for name, peer in _peers(setting, shape).items():
        try:
            _enter(setting, shape, case, name, peer)
        except Exception as error:  # the others go on
            setting.say(f"{name}: {message(error)}")


def step_shape(case: Case) -> dict[str, int]:
    names = "BC" if case.operator == "wkv4" else "BHN"
    return dict(zip(names, case.inputs["k"].shape, strict=True))


def moved_bytes(case: Case, pool_dtype: torch.dtype) -> int:
    """The states read and written, the tokens read, y written."""
    tensors = [*case.inputs.values(), case.inputs["v"]]
    states = case.empty_state(pool_dtype)
    return 2 * states.numel() * states.element_size() + sum(x.numel() * x.element_size() for x in tensors)


def _inputs(setting: Setting, shape: StepShape) -> Case:
    case = make_case(shape.operator, shape.batch, 1, shape.heads, dtype=BF16, device=setting.device)
    return case.first_token()


def _peers(setting: Setting, shape: StepShape) -> dict[str, StepPeer]:
    return step_peers_of(shape.operator, shape.pool_dtype) if setting.preparation else {}


def _enter(setting: Setting, shape: StepShape, case: Case, name: str, peer: StepPeer) -> None:
    """A first step, in which it compiles and tunes itself."""
    setting.say(f"{shape.operator}_step_ {shape}: preparing {name}")
    with setting.preparation(), torch.no_grad():
        peer(case, case.empty_state(shape.pool_dtype))[1]()
        setting.watch.wait()


def _ours(kernel: ModuleType) -> StepPeer:
    def prepare(case: Case, pool: Tensor) -> tuple[Case, Callable[[], Tensor]]:
        operator, inputs = getattr(kernel, f"{case.operator}_step_"), list(case.inputs.values())
        return case, lambda: operator(*inputs, pool, **case.options)

    return prepare


def _measured(
    setting: Setting, peer: StepPeer, case: Case, pool_dtype: torch.dtype, own: bool = False
) -> dict:
    with torch.no_grad():
        errors = _errors(setting.kernel, peer, case, pool_dtype, own)
        eager = setting.watch.from_the_host(peer(case, case.empty_state(pool_dtype))[1], CALLS)
        graph = _in_a_graph(peer, case, pool_dtype, setting.watch)
    moved = moved_bytes(case, pool_dtype)
    return {
        "graph_us": {key: value * 1e6 for key, value in graph.items()},
        "eager_us": {key: value * 1e6 for key, value in eager.json().items()},
        "of_copy_rate": moved / graph["median"] / setting.copy_rate,
        "errors": errors,
    }


def _in_a_graph(peer: StepPeer, case: Case, pool_dtype: torch.dtype, watch: Stopwatch) -> dict[str, float]:
    """Seconds of a step among those of other layers, captured together; on the CPU they are just called."""
    state = case.empty_state(pool_dtype)
    cache = CPU_CACHE
    if watch.device.type == "cuda":
        cache = torch.cuda.get_device_properties(watch.device).L2_cache_size
    layers = min(MOST_LAYERS, 4 + 2 * cache // (state.numel() * state.element_size()))
    steps = [peer(case, state.clone())[1] for _ in range(layers)]

    def all_layers() -> list[Tensor]:
        return [step() for step in steps]

    if watch.device.type != "cuda":
        time = watch.turns({"step": all_layers}, rounds=5)["step"]
    else:
        stream = torch.cuda.Stream(watch.device)
        with torch.cuda.stream(stream):
            all_layers()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = all_layers()
        time = watch.turns({"step": graph.replay}, rounds=60, cold=False)["step"]
        del kept
    return {key: value / layers for key, value in time.json().items()}


def _op_alone(setting: Setting, case: Case, pool_dtype: torch.dtype) -> dict[str, float]:
    """Microseconds of the registered op, without what the public function does around it."""
    ops = sys.modules[f"{setting.kernel.__name__}._ops"].ops
    op = getattr(ops, f"{case.operator}_step_").default
    options = () if case.decay is None else (("log", "exp", "sigmoid").index(case.decay),)
    arguments = (*case.inputs.values(), case.empty_state(pool_dtype), None, *options)
    with torch.no_grad():
        time = setting.watch.from_the_host(lambda: op(*arguments), CALLS)
    return {key: value * 1e6 for key, value in time.json().items()}


def _errors(
    kernel: ModuleType, peer: StepPeer, case: Case, pool_dtype: torch.dtype, own: bool
) -> dict[str, float]:
    """Of the last y of a few steps from an empty state, and, of ours, of the state then.

    Where a peer keeps its state, and in which layout, does not matter so.
    """
    pool = case.empty_state(pool_dtype)
    taken, step = peer(case.map(torch.clone), pool)
    tokens = _tokens(taken)
    for token in tokens:
        for name, x in taken.inputs.items():
            x.copy_(token[name])
        y = step()
    expected_y, expected_state = _reference(kernel, taken, tokens)
    errors = {"y": relative_error(y, expected_y)}
    return {**errors, "state": relative_error(pool, expected_state)} if own else errors


def _plain_errors(kernel: ModuleType, case: Case, pool_dtype: torch.dtype) -> dict[str, float]:
    """Of the same steps in plain PyTorch, in the tokens' and the pool's own dtypes."""
    reference, tokens = getattr(kernel.reference, case.operator), _tokens(case)
    state = case.empty_state(pool_dtype)
    for token in tokens:
        y, state = reference(*_one_each(case, [token]).values(), state.float(), **case.options)
        state = state.to(pool_dtype)
    expected_y, expected_state = _reference(kernel, case, tokens)
    return {"y": relative_error(y[:, 0], expected_y), "state": relative_error(state, expected_state)}


def _tokens(case: Case) -> list[dict[str, Tensor]]:
    """Some different tokens: each has the channels of the one before moved on by one."""
    per_token = case.inputs["k"].shape
    return [
        {name: x.roll(t, -1) if x.shape == per_token else x.clone() for name, x in case.inputs.items()}
        for t in range(STEPS_OF_ERRORS)
    ]


def _one_each(case: Case, tokens: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tokens one after the other, as forward takes them."""
    per_token = case.inputs["k"].shape
    return {
        name: torch.stack([token[name] for token in tokens], dim=1) if x.shape == per_token else x
        for name, x in tokens[0].items()
    }


def _reference(kernel: ModuleType, case: Case, tokens: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """y of the last token and the state after it, in float64."""
    inputs = [x.double() for x in _one_each(case, tokens).values()]
    y, state = getattr(kernel.reference, case.operator)(*inputs, **case.options)
    return y[:, -1], state
