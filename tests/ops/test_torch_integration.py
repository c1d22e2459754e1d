"""The operators inside PyTorch's machinery: opcheck, torch.compile, autocast, checkpointing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from tests.helpers.measure import TOLERANCES, error, output_gradients, run
from tests.helpers.operators import HEAD_OPERATORS, OPERATORS, Operator, call, make_inputs, step

DECAY_CODE = 1
OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.fixture(scope="session")
def ops(kernel):
    """The build's own op namespace, through the kernel's generated `_ops`."""
    import sys

    return sys.modules[f"{kernel.__name__}._ops"].ops


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def opcheck(op, *arguments) -> None:
    results = torch.library.opcheck(op, arguments, test_utils=OPCHECKS)
    assert set(results.values()) == {"SUCCESS"}, results


def raw_arguments(operator: Operator, inputs: dict[str, Tensor], cu_seqlens=None) -> tuple:
    """Arguments of `wkvN_forward` before `save`."""
    tensors = [inputs[name] for name in operator.inputs]
    return (*tensors, inputs.get("state"), *((cu_seqlens, DECAY_CODE) if operator.has_heads else ()))


FORWARD_CASES = [
    (operator, state, packed)
    for operator in OPERATORS.values()
    for state in (True, False)
    for packed in ((True, False) if operator.has_heads else (False,))
]


@pytest.mark.parametrize(("operator", "state", "packed"), FORWARD_CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck_forward_and_backward(ops, device, operator, state, packed, dtype) -> None:
    inputs = make_inputs(
        operator,
        batch=1,
        tokens=37,
        size=8,
        dtype=dtype,
        state=state,
        sequences=3 if packed else 1,
        device=device,
    )
    cu_seqlens = torch.tensor([0, 1, 1, 37], dtype=torch.int32, device=device) if packed else None
    forward = getattr(ops, f"{operator.name}_forward").default
    opcheck(forward, *raw_arguments(operator, inputs, cu_seqlens), False)
    opcheck(forward, *raw_arguments(operator, inputs, cu_seqlens), True)

    y, final_state, checkpoints = forward(*raw_arguments(operator, inputs, cu_seqlens), True)
    tail = (cu_seqlens, DECAY_CODE) if operator.has_heads else ()
    backward = getattr(ops, f"{operator.name}_backward").default
    tensors = [inputs[name] for name in operator.inputs]
    gradients = output_gradients(y, final_state, 1)
    for given in (gradients, (gradients[0], None), (None, gradients[1])):
        opcheck(backward, *tensors, checkpoints, *given, *tail)

    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    opcheck(forward, *raw_arguments(operator, leaves, cu_seqlens), True)


@pytest.mark.kernels_ci
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
@pytest.mark.parametrize("slots", [True, False], ids=["slots", "no_slots"])
@pytest.mark.parametrize("tokens", [None, 1, 3])
def test_opcheck_step(ops, device, operator, slots, tokens) -> None:
    inputs = make_inputs(operator, batch=2, tokens=tokens or 1, size=8, device=device)
    tensors = [inputs[name] for name in operator.inputs]
    if tokens is None:
        tensors = [x[:, 0] if x.shape == inputs[operator.first].shape else x for x in tensors]
    rows = torch.tensor([3, 0], dtype=torch.int32, device=device) if slots else None
    state = torch.randn(4 if slots else 2, *inputs["state"].shape[1:], device=device)
    tail = (DECAY_CODE,) if operator.has_heads else ()
    opcheck(getattr(ops, f"{operator.name}_step_").default, *tensors, state, rows, *tail)


def test_every_op_is_known(kernel) -> None:
    """A new op has to be opchecked too."""
    names = {
        name.split("::")[1].split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith(f"{kernel.__name__}::")
    }
    kinds = ("forward", "backward", "step_")
    of_cuda_builds = {"cuda_self_test"} if "_cuda_" in kernel.__name__ else set()
    assert names == {
        "cpu_isa",
        "has_chunks",
        *of_cuda_builds,
        *(f"{operator}_{kind}" for operator in OPERATORS for kind in kinds),
        *(f"{operator}_chunk_forward" for operator in HEAD_OPERATORS),
        *(f"{operator}_chunk_backward" for operator in HEAD_OPERATORS),
    }


def training_step(kernel, operator: Operator, **keywords):
    """A loss around the operator, with ordinary operations on both sides of it."""

    def loss(inputs: dict[str, Tensor]) -> Tensor:
        doubled = {name: 2 * x if name == "v" else x for name, x in inputs.items()}
        y, state = call(kernel, operator, doubled, **keywords)
        return torch.sin(y).sum() + state.square().sum()

    return loss


def gradients_of(function, inputs: dict[str, Tensor]) -> list[Tensor]:
    leaves = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    loss = function(leaves)
    loss.backward()
    return [loss.detach(), *(x.grad for x in leaves.values())]


def assert_close(results, expected) -> None:
    for value, known in zip(results, expected, strict=True):
        assert error(value, known) <= TOLERANCES[torch.float32] * known.double().norm().item()


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
@pytest.mark.parametrize(
    "state", [pytest.param(True, marks=pytest.mark.kernels_ci), False], ids=["state", "no_state"]
)
def test_compiled_training_step(kernel, device, operator, state) -> None:
    """One graph, forward and backward, compiled once however often the numbers change."""
    eager = training_step(kernel, operator)
    compiled = torch.compile(eager, fullgraph=True, backend="aot_eager")
    for seed in range(3):
        inputs = make_inputs(operator, tokens=37, state=state, seed=seed, device=device)
        with torch.compiler.set_stance("default" if seed == 0 else "fail_on_recompile"):
            results = gradients_of(compiled, inputs)
        assert_close(results, gradients_of(eager, inputs))
    assert not counters["graph_break"], counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1
    assert counters["aot_autograd"]["ok"] == 1


@pytest.mark.parametrize("operator", [OPERATORS["wkv6"], OPERATORS["wkv7"]], ids=str)
def test_inductor(kernel, device, operator) -> None:
    eager = training_step(kernel, operator)
    compiled = torch.compile(eager, fullgraph=True)
    for seed in range(2):
        inputs = make_inputs(operator, tokens=37, seed=seed, device=device)
        assert_close(gradients_of(compiled, inputs), gradients_of(eager, inputs))
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.cuda_only
@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiled_in_matrix_form(kernel, device, operator, dynamic) -> None:
    """The algorithm is chosen while tracing: the compiled step computes the same bits."""
    eager = training_step(kernel, operator)
    compiled = torch.compile(eager, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for tokens in (64, 100):
        inputs = make_inputs(operator, tokens=tokens, size=64, dtype=torch.bfloat16, device=device)
        results, expected = (gradients_of(step, inputs) for step in (compiled, eager))
        assert all(map(torch.equal, results[1:], expected[1:]))
    assert not counters["graph_break"], counters["graph_break"]


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_compiled_for_any_length(kernel, device, operator) -> None:
    """With dynamic shapes one graph serves every number of tokens and sequences."""
    eager = training_step(kernel, operator)
    compiled = torch.compile(eager, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens, batch in ((37, 2), (64, 3), (5, 4)):
        inputs = make_inputs(operator, batch=batch, tokens=tokens, device=device)
        assert_close(gradients_of(compiled, inputs), gradients_of(eager, inputs))
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
def test_compiled_packed_sequences(kernel, device, operator) -> None:
    """New bounds are new data: no recompilation, no look at their values."""

    def loss(inputs: dict[str, Tensor], cu_seqlens: Tensor) -> Tensor:
        return training_step(kernel, operator, cu_seqlens=cu_seqlens)(inputs)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for bounds in ([0, 3, 20], [0, 20, 20], [0, 0, 20]):
        cu_seqlens = torch.tensor(bounds, dtype=torch.int32, device=device)
        inputs = make_inputs(operator, batch=1, tokens=20, sequences=2, device=device)
        results = gradients_of(lambda leaves, c=cu_seqlens: compiled(leaves, c), inputs)
        assert_close(results, gradients_of(lambda leaves, c=cu_seqlens: loss(leaves, c), inputs))
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_compiled_decoding(kernel, device, operator) -> None:
    """A compiled step updates the pool it is given, and only the rows that it should."""

    def decode(inputs: dict[str, Tensor], pool: Tensor, slots: Tensor) -> Tensor:
        return torch.tanh(step(kernel, operator, inputs, pool, slots))

    compiled = torch.compile(decode, fullgraph=True, backend="aot_eager")
    pool = torch.randn(5, *make_inputs(operator)["state"].shape[1:], device=device)
    expected_pool = pool.clone()
    for rows in ([4, 0], [1, 4], [2, 3]):
        slots = torch.tensor(rows, dtype=torch.int32, device=device)
        inputs = make_inputs(operator, tokens=1, seed=rows[0], device=device)
        del inputs["state"]
        assert torch.equal(compiled(inputs, pool, slots), decode(inputs, expected_pool, slots))
        assert torch.equal(pool, expected_pool)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.kernels_ci
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_autocast(kernel, device, operator, low) -> None:
    """As autocast treats a matrix product: token inputs in the low dtype, the state in float32."""
    inputs = make_inputs(operator, tokens=37, wide_dtype=torch.float32, device=device)
    mixed = dict(inputs)
    for name in ("r", "k", "a"):  # some from a linear layer, some from a norm
        if name in mixed:
            mixed[name] = mixed[name].to(low)
    leaves = {name: x.clone().requires_grad_() for name, x in mixed.items()}
    with torch.autocast(device.type, low):
        y, state = call(kernel, operator, leaves)
    assert y.dtype == low
    assert state.dtype == torch.float32
    lowered = {n: x if n in ("state", *operator.wide) else x.to(low) for n, x in inputs.items()}
    expected_y, expected_state = call(kernel, operator, lowered)
    assert torch.equal(y, expected_y)
    assert torch.equal(state, expected_state)
    (y.float().sum() + state.sum()).backward()
    for name, leaf in leaves.items():
        assert leaf.grad.dtype == leaf.dtype, name
        assert leaf.grad.isfinite().all(), name


@pytest.mark.cpu_only
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_autocast_leaves_float64_alone(kernel, operator) -> None:
    inputs = make_inputs(operator, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = call(kernel, operator, inputs)
    assert y.dtype == state.dtype == torch.float64


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_autocast_of_a_step(kernel, device, operator) -> None:
    inputs = make_inputs(operator, tokens=2, device=device)
    mixed = {name: x.bfloat16() if name in ("k", "r") else x for name, x in inputs.items()}
    pools = [inputs["state"].clone() for _ in range(2)]
    with torch.autocast(device.type, torch.bfloat16):
        y = step(kernel, operator, mixed, pools[0])
    lowered = {n: x if n in ("state", *operator.wide) else x.bfloat16() for n, x in inputs.items()}
    assert torch.equal(y, step(kernel, operator, lowered, pools[1]))
    assert y.dtype == torch.bfloat16
    assert torch.equal(*pools)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(kernel, device, operator, reentrant) -> None:
    from torch.utils.checkpoint import checkpoint

    inputs = make_inputs(operator, tokens=40, device=device)
    expected = run(kernel, operator, inputs)
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    y, state = checkpoint(
        lambda *tensors: call(kernel, operator, dict(zip(leaves, tensors, strict=True))),
        *leaves.values(),
        use_reentrant=reentrant,
    )
    torch.autograd.backward((y, state), output_gradients(y, state, 1))
    for name, leaf in leaves.items():
        assert torch.equal(leaf.grad, expected[f"grad {name}"]), name


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_fake_tensors(kernel, device, operator) -> None:
    """Shapes, dtypes and devices without memory, as `torch.export` and memory estimates ask for."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    inputs = make_inputs(operator, dtype=torch.bfloat16, wide_dtype=torch.float32, device=device)
    expected = call(kernel, operator, inputs)
    with FakeTensorMode() as mode:
        fakes = {name: mode.from_tensor(x) for name, x in inputs.items()}
        for fake, known in zip(call(kernel, operator, fakes), expected, strict=True):
            assert (fake.shape, fake.dtype, fake.device) == (known.shape, known.dtype, known.device)
            assert fake.stride() == known.stride()


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_export(kernel, device, operator) -> None:
    class Model(torch.nn.Module):
        def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            return call(kernel, operator, inputs)

    inputs = make_inputs(operator, device=device)
    program = torch.export.export(Model(), (inputs,))
    for value, known in zip(program.module()(inputs), call(kernel, operator, inputs), strict=True):
        assert torch.equal(value, known)
