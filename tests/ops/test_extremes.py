"""Decays next to 0 and to 1, keys that overflow an exponential, and values at the ends of a dtype's range."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.extremes import EXTREME_W, in_range
from tests.helpers.measure import assert_accurate, exact_and_plain, is_plain, run
from tests.helpers.operators import DECAYS, HEAD_OPERATORS, OPERATORS, make_inputs, options, recurrent

DTYPES = [
    torch.float32,
    torch.bfloat16,
    torch.float16,
    pytest.param(torch.float64, marks=pytest.mark.cpu_only),
]


@pytest.mark.kernels_ci
@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [64, 24])
def test_all_extreme_decays_in_one_tensor(kernel, device, operator, decay, dtype, size) -> None:
    inputs = make_inputs(operator, tokens=50, heads=3, size=size, dtype=dtype, decay=decay, device=device)
    values = in_range(EXTREME_W[decay], dtype)
    chosen = torch.randint(len(values), inputs["w"].shape, generator=torch.Generator().manual_seed(3))
    inputs["w"] = values[chosen].to(device, dtype)
    assert_accurate(kernel, operator, inputs, ill_conditioned=True, **recurrent(operator, decay))


@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
@pytest.mark.parametrize(
    ("decay", "w"),
    [
        ("log", -50.0),
        ("log", -0.0001),
        ("log", 0.0),
        ("exp", -30.0),
        ("exp", -9.0),
        ("exp", 30.0),
        ("exp", 100.0),
        ("sigmoid", 30.0),
        ("sigmoid", -30.0),
    ],
)
def test_one_extreme_decay_everywhere(kernel, device, operator, decay, w) -> None:
    inputs = make_inputs(operator, tokens=200, heads=3, size=64, decay=decay, device=device)
    inputs["w"] = torch.full_like(inputs["w"], w)
    assert_accurate(kernel, operator, inputs, ill_conditioned=True, **options(operator, decay))


@pytest.mark.parametrize("operator", [OPERATORS["wkv5"], OPERATORS["wkv6"]], ids=str)
@pytest.mark.parametrize("decay", ["log", "exp"])
def test_memory_of_a_thousand_tokens(kernel, device, operator, decay) -> None:
    """Decays just below 1, where an error in the decay would add up over every token."""
    inputs = make_inputs(operator, batch=1, tokens=1000, heads=3, size=64, decay=decay, device=device)
    rates = torch.linspace(-12, -7, inputs["w"].numel(), dtype=torch.float64).reshape(inputs["w"].shape)
    inputs["w"] = (rates if decay == "exp" else -rates.exp()).to(inputs["w"])
    assert_accurate(kernel, operator, inputs, **options(operator, decay))


@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
def test_strong_decay_forgets_a_huge_state(kernel, device, operator) -> None:
    inputs = make_inputs(operator, tokens=20, decay="log", device=device)
    inputs["state"] = 1e20 * inputs["state"]
    inputs["w"] = torch.full_like(inputs["w"], -200.0)
    if "a" in inputs:
        inputs["a"] = torch.zeros_like(inputs["a"])
    results = run(kernel, operator, inputs, decay="log")
    exact, _ = exact_and_plain(kernel.reference, operator, inputs, decay="log")
    assert torch.allclose(results["final state"].cpu().double(), exact["final state"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [30.0, 1e3, 1e4])
def test_wkv4_keys_far_beyond_an_exponential(kernel, device, dtype, scale) -> None:
    operator = OPERATORS["wkv4"]
    inputs = make_inputs(operator, tokens=70, heads=3, size=24, dtype=dtype, device=device)
    inputs["k"] = scale * inputs["k"]
    assert_accurate(kernel, operator, inputs, ill_conditioned=True)


@pytest.mark.parametrize("k", [-1e4, 1e4])
@pytest.mark.parametrize("state", [True, False], ids=["state", "no_state"])
def test_wkv4_constant_huge_keys(kernel, device, k, state) -> None:
    operator = OPERATORS["wkv4"]
    inputs = make_inputs(operator, tokens=70, heads=1, size=40, state=state, device=device)
    inputs["k"] = torch.full_like(inputs["k"], k)
    assert_accurate(kernel, operator, inputs, ill_conditioned=True)


@pytest.mark.parametrize("w", [-1e-30, -1e-4, -20.0, -1e4, -1e30])
def test_wkv4_extreme_decay(kernel, device, w) -> None:
    operator = OPERATORS["wkv4"]
    inputs = make_inputs(operator, tokens=70, heads=1, size=40, device=device)
    inputs["w"] = torch.full_like(inputs["w"], w)
    assert_accurate(kernel, operator, inputs, ill_conditioned=True)


@pytest.mark.parametrize("u", [-1e4, -100.0, 100.0, 1e4])
def test_wkv4_extreme_bonus(kernel, device, u) -> None:
    operator = OPERATORS["wkv4"]
    inputs = make_inputs(operator, tokens=70, heads=1, size=40, device=device)
    inputs["u"] = torch.full_like(inputs["u"], u)
    assert_accurate(kernel, operator, inputs, ill_conditioned=True)


def test_wkv4_empty_state_given_explicitly(kernel, device) -> None:
    """(0, 0, -1e38), which models pass at the start of a sequence, is the default state."""
    operator = OPERATORS["wkv4"]
    inputs = make_inputs(operator, tokens=40, device=device)
    inputs["state"] = torch.zeros_like(inputs["state"])
    inputs["state"][:, 2] = -1e38
    assert_accurate(kernel, operator, inputs, ill_conditioned=True)
    without = run(kernel, operator, {name: x for name, x in inputs.items() if name != "state"})
    results = run(kernel, operator, inputs)
    assert all(torch.equal(results[name], value) for name, value in without.items())


@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
def test_large_keys_and_values(kernel, device, operator) -> None:
    """Products of 1e8, sums of 1e10: far from overflow, beyond what a float16 accumulator would hold."""
    inputs = make_inputs(operator, tokens=40, size=64, device=device)
    inputs["k"], inputs["v"] = 1e4 * inputs["k"], 1e4 * inputs["v"]
    assert_accurate(kernel, operator, inputs, ill_conditioned=True)


@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
def test_results_beyond_float16(kernel, device, operator) -> None:
    """y too large for float16 becomes infinity, as a conversion in PyTorch does: not a number, nor NaN."""
    inputs = make_inputs(operator, tokens=3, dtype=torch.float16, device=device)
    inputs["v"] = torch.full_like(inputs["v"], 6e4)
    y = run(kernel, operator, inputs)["y"].cpu()
    exact, _ = exact_and_plain(kernel.reference, operator, inputs)
    assert y.isinf().any()
    assert not y.isnan().any()
    assert torch.equal(y.isinf(), exact["y"].half().isinf())


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
@pytest.mark.parametrize("scale", [1e-20, 1e-38])
def test_tiny_values(kernel, device, operator, scale) -> None:
    """Down to where float32 has no full precision left, values may round to 0 but nothing becomes NaN."""
    inputs = make_inputs(operator, tokens=20, device=device)
    inputs["v"] = scale * inputs["v"]
    if "state" in inputs and operator.has_heads:
        inputs["state"] = torch.zeros_like(inputs["state"])
    assert all(torch.isfinite(value).all() for value in run(kernel, operator, inputs).values())


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_nan_stays_in_its_sequence_and_head(kernel, device, operator) -> None:
    """A NaN is not hidden, and spreads no further than the recurrence carries it."""
    inputs = make_inputs(operator, batch=3, tokens=40, heads=3, size=16, device=device)
    expected = run(kernel, operator, inputs)
    poisoned = inputs["v"].clone()
    position = (1, 20, 1, 5) if operator.has_heads else (1, 20, 21)
    poisoned[position] = float("nan")
    results = run(kernel, operator, {**inputs, "v": poisoned})
    y = results["y"]
    assert y[position].isnan()
    if not (is_plain(kernel) and operator.has_heads):  # which multiplies it by the 0 of earlier tokens
        assert not y[1, :20].isnan().any()
    assert torch.equal(y[[0, 2]], expected["y"][[0, 2]])
    if operator.has_heads:
        assert torch.equal(y[:, :, [0, 2]], expected["y"][:, :, [0, 2]])
        assert torch.equal(results["grad k"][:, :, [0, 2]], expected["grad k"][:, :, [0, 2]])
