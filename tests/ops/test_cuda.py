"""What only CUDA has: streams, several devices, graphs, and a host that must not wait for the device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.helpers.measure import assert_accurate, error, run
from tests.helpers.operators import (
    HEAD_OPERATORS,
    OPERATORS,
    Operator,
    call,
    make_inputs,
    slice_batch,
    slice_tokens,
    step,
)

pytestmark = pytest.mark.cuda_only

BUSY_CYCLES = 50_000_000  # for which a stream is kept waiting: some 25 ms
POOL = 6
# As many heads of the smallest size as make a token 2^16 elements.
WIDE = {"heads": 2**13, "size": 8}


def devices() -> list[torch.device]:
    return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]


def one_token(operator: Operator, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The first token, without a dimension for tokens and without the state."""
    first = inputs[operator.first].shape
    return {n: x[:, 0].contiguous() if x.shape == first else x for n, x in inputs.items() if n != "state"}


def pool_of(operator: Operator, inputs: dict[str, Tensor], dtype=torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    pool = torch.rand(POOL, *inputs["state"].shape[1:], generator=generator)
    return pool.to(inputs["state"].device, dtype)


def delayed(stream: torch.cuda.Stream, *groups: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Inputs that are NaN until the stream, after a pause, gets to copying the right values."""
    late = [{name: torch.full_like(x, torch.nan) for name, x in inputs.items()} for inputs in groups]
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(BUSY_CYCLES)
        for given, inputs in zip(late, groups, strict=True):
            for name, x in inputs.items():
                given[name].copy_(x, non_blocking=True)
    return late


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_current_stream(kernel, device, operator) -> None:
    """Forward, backward and the step run behind what the current stream has to do already."""
    inputs = make_inputs(operator, tokens=40, device=device)
    token, pool = one_token(operator, inputs), pool_of(operator, inputs)
    slots = torch.tensor([4, 1], dtype=torch.int32, device=device)
    expected, expected_pool = run(kernel, operator, inputs), pool.clone()
    expected_y = step(kernel, operator, token, expected_pool, slots)
    stream = torch.cuda.Stream(device)
    late, late_token = delayed(stream, inputs, token)
    with torch.cuda.stream(stream):
        y = step(kernel, operator, late_token, pool, slots)
        results = run(kernel, operator, late)
    stream.synchronize()
    for name, value in expected.items():
        assert torch.equal(results[name], value), name
    assert torch.equal(y, expected_y)
    assert torch.equal(pool, expected_pool)


@pytest.mark.parametrize("on", devices(), ids=str)
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_device_of_the_tensors(kernel, operator, on) -> None:
    """The tensors say where to run, not the current device."""
    inputs = make_inputs(operator, tokens=20, device=on)
    other = devices()[(on.index + 1) % len(devices())]
    with torch.cuda.device(other):
        assert_accurate(kernel, operator, inputs)
        y = step(kernel, operator, one_token(operator, inputs), inputs["state"].clone())
        assert y.device == on
        assert torch.cuda.current_device() == other.index


@pytest.mark.parametrize("pool_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_step_in_a_graph(kernel, device, operator, pool_dtype) -> None:
    """Captured once and replayed, a step does what eager calls do, also on rows chosen later."""
    inputs = make_inputs(operator, tokens=1, device=device)
    token, pool = one_token(operator, inputs), pool_of(operator, inputs, pool_dtype)
    slots = torch.tensor([4, 1], dtype=torch.int32, device=device)
    expected_pool = pool.clone()

    stream = torch.cuda.Stream(device)  # capture wants a warm-up on a stream of its own
    with torch.cuda.stream(stream), torch.no_grad():
        step(kernel, operator, token, pool.clone(), slots)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        y = step(kernel, operator, token, pool, slots)
    assert torch.equal(pool, expected_pool), "a capture runs nothing"
    for seed, rows in ((1, [4, 1]), (2, [0, 5]), (3, [5, 4])):
        fresh = one_token(operator, make_inputs(operator, tokens=1, seed=seed, device=device))
        for name, x in token.items():
            x.copy_(fresh[name])
        slots.copy_(torch.tensor(rows, dtype=torch.int32))
        graph.replay()
        assert torch.equal(y, step(kernel, operator, fresh, expected_pool, slots))
        assert torch.equal(pool, expected_pool)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_forward_and_backward_in_a_graph(kernel, device, operator) -> None:
    inputs = make_inputs(operator, tokens=40, device=device)
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}

    def training_step() -> list[Tensor]:
        y, state = call(kernel, operator, leaves)
        return [y, state, *torch.autograd.grad((y.square().sum(), state.sum()), list(leaves.values()))]

    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        expected = [x.detach().clone() for x in training_step()]
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = training_step()
    for x in results:
        x.detach().fill_(torch.nan)
    graph.replay()
    assert all(torch.equal(*pair) for pair in zip(results, expected, strict=True))


def allocations(function: Callable[[], object], device: torch.device) -> int:
    """How many blocks of device memory a call asks for."""
    kept = [function()]  # warm
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_stats(device)["allocation.all.allocated"]
    kept.append(function())
    return torch.cuda.memory_stats(device)["allocation.all.allocated"] - before


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_slots", [True, False], ids=["slots", "no_slots"])
def test_step_allocates_only_y(kernel, device, operator, dtype, with_slots) -> None:
    inputs = make_inputs(operator, tokens=1, size=64, dtype=dtype, device=device)
    token = one_token(operator, inputs)
    pool = pool_of(operator, inputs) if with_slots else inputs["state"]
    slots = torch.tensor([4, 1], dtype=torch.int32, device=device) if with_slots else None
    with torch.no_grad():
        assert allocations(lambda: step(kernel, operator, token, pool, slots), device) == 1


@pytest.fixture
def no_synchronisation(device):
    """Whatever makes the host wait for the device raises an error."""

    def forbid() -> None:
        torch.cuda.synchronize(device)
        torch.cuda.set_sync_debug_mode("error")

    yield forbid
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_the_host_does_not_wait(kernel, device, no_synchronisation, operator) -> None:
    """Forward, backward and the step, bounds and slots included: no value is read back."""
    bounds = torch.tensor([0, 0, 3, 40], dtype=torch.int32, device=device) if operator.has_heads else None
    packed = {"cu_seqlens": bounds} if operator.has_heads else {}
    inputs = make_inputs(operator, batch=1, tokens=40, sequences=3 if packed else 1, device=device)
    leaves = {name: x.requires_grad_() for name, x in inputs.items()}
    token = one_token(operator, {name: x.detach() for name, x in inputs.items()})
    pool, slots = pool_of(operator, inputs), torch.tensor([2], dtype=torch.int32, device=device)
    no_synchronisation()
    y, state = call(kernel, operator, leaves, **packed)
    torch.autograd.backward((y.sum(), state.sum()))
    step(kernel, operator, token, pool, slots)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_the_host_runs_ahead(kernel, device, operator) -> None:
    """A call returns while the device is still busy with what came before."""
    inputs = make_inputs(operator, tokens=40, device=device)
    token, pool = one_token(operator, inputs), pool_of(operator, inputs)
    slots = torch.tensor([2, 0], dtype=torch.int32, device=device)
    run(kernel, operator, inputs)
    step(kernel, operator, token, pool, slots)
    torch.cuda.synchronize()
    torch.cuda._sleep(20 * BUSY_CYCLES)
    busy = torch.cuda.Event()
    busy.record()
    call(kernel, operator, inputs)
    step(kernel, operator, token, pool, slots)
    assert not busy.query()
    torch.cuda.synchronize()


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
@pytest.mark.parametrize("bad", [-1, POOL, 2**31 - 1, -(2**31)])
def test_slot_out_of_range(kernel, device, operator, bad) -> None:
    """Nothing is written for it, its y is NaN, and the other sequences do not notice."""
    inputs = make_inputs(operator, batch=3, tokens=1, device=device)
    token, pool = one_token(operator, inputs), pool_of(operator, inputs)
    expected_pool = pool.clone()
    per_sequence = token[operator.first].dim()
    good = {name: x[[0, 2]] if x.dim() == per_sequence else x for name, x in token.items()}
    good_slots = torch.tensor([4, 1], dtype=torch.int32, device=device)
    expected_y = step(kernel, operator, good, expected_pool, good_slots)
    slots = torch.tensor([4, bad, 1], dtype=torch.int32, device=device)
    y = step(kernel, operator, token, pool, slots)
    assert y[1].isnan().all()
    assert torch.equal(y[[0, 2]], expected_y)
    assert torch.equal(pool, expected_pool)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_float64_is_refused(kernel, device, operator) -> None:
    inputs = make_inputs(operator, dtype=torch.float64, device=device)
    with pytest.raises(RuntimeError, match=f"{operator.first} must be float32.*got float64 on cuda"):
        call(kernel, operator, inputs)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_two_devices_at_once(kernel, device, operator) -> None:
    """A tensor left on the CPU is named."""
    inputs = make_inputs(operator, device=device)
    for name in list(inputs)[1:]:
        with pytest.raises(RuntimeError, match=f"{name} must be on the device of .*cuda.*got cpu"):
            call(kernel, operator, {**inputs, name: inputs[name].cpu()})


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "size"), [(3, 64), (2, 40), (1, 256)])
def test_repeats(kernel, device, operator, dtype, heads, size) -> None:
    """200 times the same bits, gradients included: a race would show."""
    inputs = make_inputs(operator, tokens=97, heads=heads, size=size, dtype=dtype, device=device)
    expected = run(kernel, operator, inputs)
    differs = torch.zeros((), dtype=torch.bool, device=device)
    for _ in range(200):
        for name, value in run(kernel, operator, inputs).items():
            differs |= (value != expected[name]).any()
    assert not differs


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_many_sequences(kernel, device, operator) -> None:
    """More sequences than a grid has rows in its second dimension."""
    inputs = make_inputs(operator, batch=70_000, tokens=2, heads=1, size=8, device=device)
    y, state = call(kernel, operator, inputs)
    last = slice_batch(operator, inputs, 70_000 - 3, 70_000)
    expected_y, expected_state = call(kernel, operator, last)
    assert torch.equal(y[-3:], expected_y)
    assert torch.equal(state[-3:], expected_state)


@pytest.fixture
def free_memory_afterwards():
    yield
    torch.cuda.empty_cache()


def expanded(operator: Operator, tokens: int, device: torch.device) -> dict[str, Tensor]:
    """One token repeated without memory: more elements than 32 bits count, in nothing but strides of 0."""
    inputs = make_inputs(operator, batch=1, tokens=1, dtype=torch.bfloat16, device=device, **WIDE)
    first = inputs[operator.first].shape
    return {n: x.expand(1, tokens, *x.shape[2:]) if x.shape == first else x for n, x in inputs.items()}


@pytest.mark.xdist_group("large memory")
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_results_beyond_32_bits(kernel, device, free_memory_afterwards, operator) -> None:
    """y of more than 2^31 elements: its end is what the same tokens give in a call of their own."""
    tokens = 2**31 // 2**16 + 40
    inputs = expanded(operator, tokens, device)
    y, state = call(kernel, operator, inputs)
    tail = y[:, -50:].clone()
    del y
    _, carried = call(kernel, operator, slice_tokens(operator, inputs, 0, tokens - 50))
    end = {**slice_tokens(operator, inputs, tokens - 50, tokens), "state": carried}
    expected_y, expected_state = call(kernel, operator, end)
    assert torch.equal(tail, expected_y)
    assert torch.equal(state, expected_state)


@pytest.mark.xdist_group("large memory")
@pytest.mark.parametrize("operator", [OPERATORS["wkv4"], OPERATORS["wkv6"]], ids=str)
def test_gradients_beyond_32_bits(kernel, device, free_memory_afterwards, operator) -> None:
    """Gradients of the last tokens, beyond 2^31 elements, against a call with these tokens alone."""
    tokens = 2**31 // 2**16 + 40
    inputs = expanded(operator, tokens, device)
    v = inputs["v"].detach().requires_grad_()
    y, _ = call(kernel, operator, {**inputs, "v": v})
    (dv,) = torch.autograd.grad(y.sum(), v)
    tail = dv[:, -50:].clone()
    del y, dv
    _, carried = call(kernel, operator, slice_tokens(operator, inputs, 0, tokens - 50))
    end = {**slice_tokens(operator, inputs, tokens - 50, tokens), "state": carried}
    leaf = end["v"].detach().clone().requires_grad_()
    y, _ = call(kernel, operator, {**end, "v": leaf})
    (expected,) = torch.autograd.grad(y.sum(), leaf)
    assert error(tail, expected) <= 4e-3 * expected.double().norm().item()


@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
@pytest.mark.parametrize(
    "bounds", [[0, 10**9, 20], [-5, 7, 20], [0, 15, 3], [2**31 - 1, -(2**31), 9]], ids=str
)
def test_offsets_outside_the_tokens(kernel, device, operator, bounds) -> None:
    """The host does not read cu_seqlens: wrong ones touch nothing outside the tensors."""
    inputs = make_inputs(operator, batch=1, tokens=20, size=64, sequences=2, device=device)
    guards = [torch.full((1 << 20,), 3.0, device=device) for _ in range(4)]
    run(kernel, operator, inputs, cu_seqlens=torch.tensor(bounds, dtype=torch.int32, device=device))
    torch.cuda.synchronize()
    assert all((guard == 3).all() for guard in guards)
    right = torch.tensor([0, 20, 20], dtype=torch.int32, device=device)
    assert_accurate(kernel, operator, inputs, cu_seqlens=right)


@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
def test_long_sequences_of_few_heads(kernel, device, operator) -> None:
    """Gradients of so many tokens that a device with few heads takes them in windows: as with many heads."""
    few = make_inputs(operator, batch=1, tokens=8200, heads=8, size=64, device=device)
    batch = (
        torch.cuda.get_device_properties(device).multi_processor_count // 8
    )  # a head for each multiprocessor
    many = {
        name: x if name in operator.wide and x.dim() < 4 else x.expand(batch, *x.shape[1:]).contiguous()
        for name, x in few.items()
    }
    results, others = {}, {}
    for inputs, into in ((few, results), (many, others)):
        leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
        y, state = call(kernel, operator, leaves)
        gradients = [torch.zeros_like(x) for x in (y, state)]
        generator = torch.Generator(device).manual_seed(1)
        for x in gradients:  # of the first sequence alone
            x[0] = torch.randn(x.shape[1:], generator=generator, device=device)
        torch.autograd.backward((y, state), gradients)
        into |= {
            name: leaf.grad if leaf.shape == few[name].shape else leaf.grad[:1]
            for name, leaf in leaves.items()
        }
    for name, value in results.items():
        assert error(value, others[name]) <= 1e-5 * others[name].norm(), name
