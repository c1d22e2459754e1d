"""The oracle itself, against the sums that the recurrences unroll to, written down independently."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from tests.helpers.operators import DECAYS, HEAD_OPERATORS, OPERATORS, call, make_inputs, options

DECAY_IN_PLAIN_NUMBERS = {
    "log": lambda w: math.exp(w),
    "exp": lambda w: math.exp(-math.exp(w)),
    "sigmoid": lambda w: math.exp(-math.exp(-0.5) / (1 + math.exp(-w))),
}


def doubles(operator, **sizes):
    return make_inputs(operator, dtype=torch.float64, **sizes)


@pytest.mark.parametrize("decay", DECAYS)
def test_decay_factor(kernel, decay: str) -> None:
    w = torch.linspace(-20, 6, 53, dtype=torch.float64)
    expected = torch.tensor([DECAY_IN_PLAIN_NUMBERS[decay](x) for x in w.tolist()], dtype=torch.float64)
    assert torch.allclose(kernel.reference.decay_factor(w, decay), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("decay", DECAYS)
def test_decay_factor_is_finite_for_every_w_that_decays(kernel, decay: str) -> None:
    upper = 0.0 if decay == "log" else math.inf
    w = torch.tensor(
        [-math.inf, -1e30, -700, -1, 0, upper, min(upper, 1e30), min(upper, 100)], requires_grad=True
    )
    d = kernel.reference.decay_factor(w, decay)
    d.sum().backward()
    assert torch.isfinite(d).all()
    assert ((d >= 0) & (d <= 1)).all()
    assert torch.isfinite(w.grad).all()


def test_decay_factor_refuses_other_names(kernel) -> None:
    with pytest.raises(ValueError, match="decay must be one of 'log', 'exp', 'sigmoid', got 'Log'"):
        kernel.reference.decay_factor(torch.zeros(1), "Log")


def test_wkv4_is_a_weighted_mean(kernel) -> None:
    tokens = 6
    inputs = doubles(OPERATORS["wkv4"], batch=1, tokens=tokens, heads=1, size=3, state=False)
    k, v, w, u = (inputs[name] for name in "kvwu")
    y, state = kernel.reference.wkv4(k, v, w, u)
    for t in range(tokens):
        logs = torch.stack([k[0, s] + (t - 1 - s) * w for s in range(t)] + [k[0, t] + u])
        assert torch.allclose(y[0, t], (logs.softmax(0) * v[0, : t + 1]).sum(0), rtol=1e-13)
    logs = torch.stack([k[0, s] + (tokens - 1 - s) * w for s in range(tokens)])
    p, q, o = state[0]
    assert torch.allclose(q.log() + o, logs.logsumexp(0), rtol=1e-13)
    assert torch.allclose(p / q, (logs.softmax(0) * v[0]).sum(0), rtol=1e-13)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("name", ["wkv5", "wkv6"])
def test_wkv5_and_wkv6_are_decayed_linear_attention(kernel, name: str, decay: str) -> None:
    """y_t = sum_{s<t} (r_t · (d_{s+1} … d_{t-1}) k_s) v_s + (r_t · u k_t) v_t, and the state's share."""
    operator = OPERATORS[name]
    inputs = doubles(operator, batch=1, tokens=5, heads=1, size=4, decay=decay)
    r, k, v = (inputs[n][0, :, 0] for n in "rkv")
    u, initial = inputs["u"][0], inputs["state"][0, 0]
    d = kernel.reference.decay_factor(inputs["w"], decay)
    d = d[0, :, 0] if name == "wkv6" else d.expand(5, 4)
    y, state = call(kernel.reference, operator, inputs, **options(operator, decay))
    for t in range(5):
        expected = initial @ (r[t] * d[:t].prod(0)) + (r[t] * u * k[t]).sum() * v[t]
        for s in range(t):
            expected = expected + (r[t] * d[s + 1 : t].prod(0) * k[s]).sum() * v[s]
        assert torch.allclose(y[0, t, 0], expected, rtol=1e-12)
    value_major = sum(torch.outer(v[s], d[s + 1 :].prod(0) * k[s]) for s in range(5)) + initial * d.prod(0)
    assert torch.allclose(state[0, 0], value_major, rtol=1e-12)


@pytest.mark.parametrize("decay", DECAYS)
def test_wkv7_is_a_product_of_transitions(kernel, decay: str) -> None:
    """S_t = sum_s v_s k_s^T G_{s+1} … G_t with G = diag(d) + a b^T, acting on the key side."""
    operator = OPERATORS["wkv7"]
    inputs = doubles(operator, batch=1, tokens=5, heads=1, size=4, decay=decay)
    r, k, v, a, b = (inputs[n][0, :, 0] for n in "rkvab")
    d = kernel.reference.decay_factor(inputs["w"], decay)[0, :, 0]
    transitions = torch.diag_embed(d) + a[:, :, None] * b[:, None, :]
    y, state = call(kernel.reference, operator, inputs, **options(operator, decay))

    def after(t: int) -> torch.Tensor:
        total = inputs["state"][0, 0]
        for s in range(t + 1):
            total = total @ transitions[s]
        for s in range(t + 1):
            share = torch.outer(v[s], k[s])
            for later in range(s + 1, t + 1):
                share = share @ transitions[later]
            total = total + share
        return total

    for t in range(5):
        assert torch.allclose(y[0, t, 0], after(t) @ r[t], rtol=1e-12)
    assert torch.allclose(state[0, 0], after(4), rtol=1e-12)


@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
def test_packing_is_one_call_a_sequence(kernel, operator) -> None:
    bounds = [0, 0, 1, 7, 10, 10]
    inputs = doubles(operator, batch=1, tokens=10, heads=2, size=4, sequences=5)
    y, state = call(kernel.reference, operator, inputs, cu_seqlens=torch.tensor(bounds, dtype=torch.int32))
    for i, (start, end) in enumerate(itertools.pairwise(bounds)):
        one = {n: x[:, start:end] if x.dim() == 4 and n != "state" else x for n, x in inputs.items()}
        one["state"] = inputs["state"][i : i + 1]
        y_one, state_one = call(kernel.reference, operator, one)
        assert torch.equal(y[:, start:end], y_one)
        assert torch.equal(state[i : i + 1], state_one)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_gradients_are_those_of_the_formula(kernel, operator) -> None:
    inputs = doubles(operator, batch=2, tokens=3, heads=1, size=3)
    leaves = {name: x.requires_grad_() for name, x in inputs.items()}
    assert torch.autograd.gradcheck(
        lambda *tensors: call(kernel.reference, operator, dict(zip(leaves, tensors, strict=True))),
        tuple(leaves.values()),
    )


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_dtypes_and_new_tensors(kernel, operator) -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        for tokens in (0, 2):
            inputs = make_inputs(
                operator, tokens=tokens, dtype=dtype, wide_dtype=torch.promote_types(dtype, torch.float32)
            )
            y, state = call(kernel.reference, operator, inputs)
            assert y.dtype == dtype
            assert y.shape == inputs[operator.first].shape
            assert state.dtype == inputs["state"].dtype
            assert state.data_ptr() != inputs["state"].data_ptr()
