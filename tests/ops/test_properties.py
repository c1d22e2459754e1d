"""Random shapes, layouts, dtypes and options: what no list of cases thought of."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.extremes import EXTREME_W, in_range
from tests.helpers.layouts import LAYOUTS, SHARINGS, sliding_window
from tests.helpers.measure import exact_and_plain, output_gradients, violations
from tests.helpers.operators import (
    HEAD_OPERATORS,
    OPERATORS,
    call,
    make_inputs,
    options,
    recurrent,
    step,
    token_inputs,
)


def examples(share: float) -> settings:
    """A part of what the profile says: one is a reference in float64, token by token, with gradients."""
    return settings(
        max_examples=round(share * settings().max_examples),
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


EXAMPLES, FEW_EXAMPLES = examples(0.4), examples(0.12)


def dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    cpu_only = (torch.float64,) if device.type == "cpu" else ()
    return (torch.float32, torch.bfloat16, torch.float16, *cpu_only)


def draw_inputs(data, operator, device, **sizes) -> tuple[dict[str, torch.Tensor], dict]:
    """Inputs, each in a layout of its own, and the options of the call."""
    dtype = data.draw(st.sampled_from(dtypes(device)), label="dtype")
    wide_dtype = data.draw(
        st.sampled_from([dtype, torch.promote_types(dtype, torch.float32)]), label="wide dtype"
    )
    decay = data.draw(st.sampled_from(operator.decays), label="decay")
    size = 8 * data.draw(st.integers(1, 12) | st.sampled_from([16, 31, 32]), label="head size / 8")
    inputs = make_inputs(
        operator,
        heads=data.draw(st.integers(1, 9 if size <= 96 else 2), label="heads"),
        size=size,
        dtype=dtype,
        wide_dtype=wide_dtype,
        decay=decay,
        state=data.draw(st.booleans(), label="with state"),
        device=device,
        seed=data.draw(st.integers(0, 2**16), label="seed"),
        **sizes,
    )
    layouts = {name: data.draw(st.sampled_from(LAYOUTS), label=f"layout of {name}") for name in inputs}
    return {name: layouts[name](x) for name, x in inputs.items()}, options(operator, decay)


def share_memory(data, operator, inputs) -> None:
    """Give inputs strides of 0, or rows that overlap; RWKV-7's a and b, which belong together, the same."""
    for names in (["a", "b"], *([name] for name in token_inputs(operator, inputs) if name not in "ab")):
        shapes = st.sampled_from([*SHARINGS, *([sliding_window] if names[0] in "rkv" else [])])
        sharing = data.draw(shapes, label=f"sharing of {' and '.join(names)}")
        inputs.update({name: sharing(inputs[name]) for name in names if name in inputs})


def assert_right(data, kernel, operator, inputs, ill_conditioned=False, **keywords) -> None:
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    y, state = call(kernel, operator, leaves, **keywords, **recurrent(operator))
    gradients = [
        data.draw(st.sampled_from(LAYOUTS), label="layout of a gradient")(g)
        for g in output_gradients(y, state, 1)
    ]
    torch.autograd.backward((y, state), gradients)
    results = {"y": y.detach(), "final state": state.detach()}
    results.update({f"grad {name}": leaf.grad for name, leaf in leaves.items()})
    exact, plain = exact_and_plain(kernel.reference, operator, inputs, **keywords)
    lines = violations(operator, inputs, results, exact, plain, ill_conditioned)
    assert not lines, "\n" + "\n".join(lines)


@EXAMPLES
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
@given(data=st.data())
def test_batches(kernel, device, operator, data) -> None:
    sizes = {
        "batch": data.draw(st.integers(1, 4), label="batch"),
        "tokens": data.draw(st.integers(1, 80), label="tokens"),
    }
    inputs, keywords = draw_inputs(data, operator, device, **sizes)
    assert_right(data, kernel, operator, inputs, **keywords)


@EXAMPLES
@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
@given(data=st.data())
def test_packed_sequences(kernel, device, operator, data) -> None:
    lengths = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any), label="lengths")
    inputs, keywords = draw_inputs(
        data, operator, device, batch=1, tokens=sum(lengths), sequences=len(lengths)
    )
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
    assert_right(data, kernel, operator, inputs, cu_seqlens=cu_seqlens, **keywords)


@FEW_EXAMPLES
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
@given(data=st.data())
def test_shared_memory(kernel, device, operator, data) -> None:
    """One row in memory for many sequences, tokens or heads: each has a gradient of its own."""
    batch, tokens = data.draw(st.integers(1, 3), label="batch"), data.draw(st.integers(1, 24), label="tokens")
    inputs, keywords = draw_inputs(data, operator, device, batch=batch, tokens=tokens)
    share_memory(data, operator, inputs)
    assert_right(data, kernel, operator, inputs, **keywords)


@FEW_EXAMPLES
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
@given(data=st.data())
def test_extreme_values(kernel, device, operator, data) -> None:
    """Decays of 0, of 1 and beside either, anywhere among the others; values that are 0, small or large."""
    sizes = {"batch": data.draw(st.integers(1, 2), label="batch"), "tokens": 24}
    inputs, keywords = draw_inputs(data, operator, device, **sizes)
    w, seed = inputs["w"], data.draw(st.integers(0, 2**16), label="seed of the extremes")
    generator = torch.Generator().manual_seed(seed)
    values = in_range(EXTREME_W[keywords.get("decay", "wkv4")], w.dtype)
    extremes = values[torch.randint(len(values), w.shape, generator=generator)].to(device, w.dtype)
    share = data.draw(st.sampled_from([0.05, 0.5, 1.0]), label="share of extremes")
    inputs["w"] = torch.where((torch.rand(w.shape, generator=generator) < share).to(device), extremes, w)
    inputs["v"] = inputs["v"] * data.draw(st.sampled_from([0.0, 2**-6, 1.0, 16.0]), label="factor of v")
    assert_right(data, kernel, operator, inputs, ill_conditioned=True, **keywords)


@EXAMPLES
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
@given(data=st.data())
def test_decoding(kernel, device, operator, data) -> None:
    """A step is a call with the chosen rows of the pool, whatever the layouts."""
    batch = data.draw(st.integers(1, 4), label="batch")
    inputs, keywords = draw_inputs(
        data, operator, device, batch=batch, tokens=data.draw(st.integers(0, 4), label="tokens")
    )
    state_shape = operator.state_shape(
        batch, *inputs[operator.first].shape[2:], *([] if operator.has_heads else [1])
    )
    rows = batch + data.draw(st.integers(0, 4), label="further rows")
    pool_dtypes = [torch.float32, torch.bfloat16, torch.float16]
    is_double = inputs[operator.first].dtype == torch.float64
    pool_dtype = torch.float64 if is_double else data.draw(st.sampled_from(pool_dtypes), label="pool dtype")
    pool = torch.rand(rows, *state_shape[1:], dtype=torch.float64).to(device, pool_dtype)
    pool = data.draw(st.sampled_from(LAYOUTS), label="layout of the pool")(pool)
    slots = data.draw(st.permutations(range(rows)), label="rows")[:batch]

    before = pool.clone()
    initial = before[slots].to(torch.float64 if is_double else torch.float32)
    expected_y, expected_state = call(kernel, operator, {**inputs, "state": initial}, **keywords)
    y = step(
        kernel, operator, inputs, pool, torch.tensor(slots, dtype=torch.int32, device=device), **keywords
    )
    assert torch.equal(y, expected_y)
    before[slots] = expected_state.to(pool_dtype)
    assert torch.equal(pool, before)
